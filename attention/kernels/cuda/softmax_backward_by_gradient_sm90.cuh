// The warpgroups that multiply in the Hopper backward pass at head size 256. dK and dV of a tile of
// 64 keys are 128 KB in float32, half of a multiprocessor's registers, so one warpgroup owns dV and
// the other dK, 128 registers a thread each, and each computes what its own gradient is made from:
//   the first   S^T = K Q^T,   P^T = exp(scale S^T - lse)   dV += P^T dO   dQ, columns 0 to 127
//   the second  dP^T = V dO^T, dS^T = P^T (dP^T - delta)    dK += dS^T Q   dQ, columns 128 to 255
// P^T and dS^T stay in registers as left operands. P^T goes to the second warpgroup through shared
// memory, thread by thread, in bf16, the very numbers that dV is made from; dS^T goes there for dQ.
//
// A step of 64 queries is 5 products of 64 x 64 x 256: 2,560 cycles at 2,048 multiplications a
// cycle. What it moves through shared memory: 128 KB for S and dP, 64 for dV and dK (their left
// operands are in registers), 64 for dQ, 24 for P and dS, 128 for dQ on its way to memory, 64 for Q
// and dO arriving: 472 KB, 3,780 cycles at 128 bytes a cycle. Were scores cut by queries instead,
// 64 x 32 for each warpgroup, their operands would be 192 KB, and each would need P and dS of the
// other.
//
// Two barriers a step order everything between the warpgroups. P^T is written after the first one's
// products of the step before, so whoever has seen it may overwrite dS^T; dS^T is written after P^T
// was read, so whoever has seen it may overwrite P^T.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "attention/kernels/cuda/hopper.cuh"
#include "attention/kernels/cuda/mma.cuh"
#include "attention/kernels/cuda/softmax_attention_cuda.h"
#include "attention/kernels/cuda/softmax_backward_block_sm90.cuh"
#include "attention/kernels/cuda/softmax_backward_products_sm90.cuh"
#include "attention/kernels/cuda/warpgroup_products.cuh"

namespace evenkeel {

#if defined(EK_HAS_SM90A)

// Named barriers: 128 threads of one arrive, 128 of the other wait.
constexpr int kProbabilitiesBarrier = 2;   // P^T is there
constexpr int kScoreGradientsBarrier = 3;  // dS^T is there
constexpr int kZeroedDoutBarrier = 4;      // of a query tile that ends early
// Among the 128 threads of a warpgroup; and the next, one for each.
constexpr int kWarpgroupBarrier = 5;

// Both pieces of the warpgroup's half of dQ; asynchronous, a group each.
template <typename Shape>
__device__ __forceinline__ void StartHalfQueryGradient(float (&first)[32], float (&second)[32],
                                                       const BackwardTiles& tiles, int half) {
  const uint32_t k_columns = tiles.k + half * 2 * (Shape::kKeys * 128);
  StartQueryGradient<Shape>(first, k_columns, tiles.ds);
  StartQueryGradient<Shape>(second, k_columns + Shape::kKeys * 128, tiles.ds);
}

// The first warpgroup.
template <typename Shape>
__device__ __forceinline__ void ConsumeForValues(const SoftmaxBackwardParams& params,
                                                 BackwardBarriers& b, const BackwardTiles& tiles,
                                                 const BackwardStep* steps,
                                                 const BackwardKeys* notes,
                                                 Contribution* contributions) {
  constexpr int kDim = Shape::kHeadDim, kQueries = Shape::kQueries, kKeys = Shape::kKeys;
  const SoftmaxForwardParams& p = params.forward;
  const int thread = threadIdx.x % 128, lane = thread % 32;
  const int first_key = thread / 32 * 16 + lane / 4;  // and the one 8 further
  const float scale = p.scale * kLog2E;
  const auto release = [&](uint64_t& barrier) { Arrive(SharedAddress(&barrier)); };

  RingPlace<2> place;
  RingPlace<Shape::kFirstPlaces> piece_place;
  const auto leave = [&](const float(&piece)[32]) {
    const int at = piece_place.stage;
    WaitBarrier(SharedAddress(&b.dq_empty[at]), piece_place.parity ^ 1);
    LeaveQueryGradient<Shape>(piece, tiles, at, thread);
    Arrive(SharedAddress(&b.dq_full[at]));
    piece_place.Advance();
  };
  for (uint32_t round = 0;; ++round) {  // over key tiles
    WaitBarrier(SharedAddress(&b.q_full[place.stage]), place.parity);
    if (steps[place.stage].tile < 0) break;
    WaitBarrier(SharedAddress(&b.k_full[0]), round % 2);
    // Rows past the end hold whatever lies there: 0 times NaN would be NaN. The second warpgroup
    // multiplies by K and Q only once it has seen P^T, so zeroes written before that serve both.
    const int kv_rows = notes[round % kKeyNotes].kv_rows;
    if (kv_rows < kKeys) {
      ZeroRows<kKeys, kDim, 128>(tiles.k, kv_rows, thread);
      FenceSharedForAsync();
      NamedBarrierSync(kWarpgroupBarrier, 128);
    }
    float dv[kDim / 2];
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) dv[i] = 0.0f;
    uint32_t covered = 0;

    for (bool last = false; !last;) {
      WaitBarrier(SharedAddress(&b.q_full[place.stage]), place.parity);
      const BackwardStep step = steps[place.stage];
      last = step.last;
      // Early: that its turn has come is known by the time there is something to add.
      if (thread == 0) NameContribution(b, contributions, place.stage, {step.tile, step.turn});
      const uint32_t q_tile = tiles.q + place.stage * Shape::kQueryBytes;
      const uint32_t lse = tiles.lse + place.stage * Shape::kRowBytes + (lane % 4) * 8;
      if (step.rows < kQueries) {
        ZeroRows<kQueries, kDim, 128>(q_tile, step.rows, thread);
        FenceSharedForAsync();
        NamedBarrierSync(kWarpgroupBarrier, 128);
      }
      float s[kQueries / 2];
      StartScores<Shape>(s, tiles.k, q_tile);
      const SeenKeys seen = FindSeenKeys<Shape>(step, 0, first_key);
      covered |= seen.of_task;
      WgmmaWait<0>();
      uint32_t probabilities[kQueries / 16][4];
      TakeProbabilities<Shape>(s, probabilities, lse, scale, seen, lane);
#pragma unroll
      for (int i = 0; i < kQueries / 16; ++i) {
        StoreShared16(tiles.exchange + i * 2048 + thread * 16, probabilities[i]);
      }
      NamedBarrierArrive(kProbabilitiesBarrier, 256);
      release(b.q_empty[place.stage]);

      const auto do_place = InStepWith<Shape::kDoutStages>(place);
      WaitBarrier(SharedAddress(&b.do_full[do_place.stage]), do_place.parity);
      if (step.rows < kQueries) NamedBarrierSync(kZeroedDoutBarrier, 256);
      StartKeyGradient<Shape>(dv, probabilities, tiles.dout + do_place.stage * Shape::kQueryBytes);
      NamedBarrierSync(kScoreGradientsBarrier, 256);
      float dq[2][32];
      StartHalfQueryGradient<Shape>(dq[0], dq[1], tiles, 0);
      WgmmaWait<2>();
      release(b.do_empty[do_place.stage]);
      WgmmaWait<1>();
      leave(dq[0]);
      WgmmaWait<0>();
      if (last) release(b.k_empty[0]);
      leave(dq[1]);
      place.Advance();
    }

    const BackwardKeys keys = notes[round % kKeyNotes];
    StoreGradient<kDim>(dv, params.dv, params.dv_stride, int64_t{keys.kv_begin} + first_key,
                        keys.kv_head * p.value_dim, p.value_dim, 1.0f, params.mode, covered, lane);
  }
  if (thread == 0) NameContribution(b, contributions, place.stage, {-1, 0});
}

// The second warpgroup.
template <typename Shape>
__device__ __forceinline__ void ConsumeForKeys(const SoftmaxBackwardParams& params,
                                               BackwardBarriers& b, const BackwardTiles& tiles,
                                               const BackwardStep* steps, const BackwardKeys* notes,
                                               Contribution* contributions) {
  constexpr int kDim = Shape::kHeadDim, kQueries = Shape::kQueries, kKeys = Shape::kKeys;
  const SoftmaxForwardParams& p = params.forward;
  const int thread = threadIdx.x % 128, lane = thread % 32;
  const int first_key = thread / 32 * 16 + lane / 4;
  const auto release = [&](uint64_t& barrier) { Arrive(SharedAddress(&barrier)); };

  RingPlace<2> place;
  RingPlace<Shape::kPlaces - Shape::kFirstPlaces> piece_place;
  const auto leave = [&](const float(&piece)[32]) {
    const int at = Shape::kFirstPlaces + piece_place.stage;
    WaitBarrier(SharedAddress(&b.dq_empty[at]), piece_place.parity ^ 1);
    LeaveQueryGradient<Shape>(piece, tiles, at, thread);
    Arrive(SharedAddress(&b.dq_full[at]));
    piece_place.Advance();
  };
  for (uint32_t round = 0;; ++round) {
    WaitBarrier(SharedAddress(&b.q_full[place.stage]), place.parity);
    if (steps[place.stage].tile < 0) break;
    WaitBarrier(SharedAddress(&b.k_full[0]), round % 2);
    WaitBarrier(SharedAddress(&b.v_full), round % 2);
    const int kv_rows = notes[round % kKeyNotes].kv_rows;
    if (kv_rows < kKeys) {
      ZeroRows<kKeys, kDim, 128>(tiles.v, kv_rows, thread);
      FenceSharedForAsync();
      NamedBarrierSync(kWarpgroupBarrier + 1, 128);
    }
    float dk[kDim / 2];
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) dk[i] = 0.0f;
    uint32_t covered = 0;

    for (bool last = false; !last;) {
      WaitBarrier(SharedAddress(&b.q_full[place.stage]), place.parity);
      const BackwardStep step = steps[place.stage];
      last = step.last;
      if (thread == 0) NameContribution(b, contributions, 2 + place.stage, {step.tile, step.turn});
      const auto do_place = InStepWith<Shape::kDoutStages>(place);
      const uint32_t do_tile = tiles.dout + do_place.stage * Shape::kQueryBytes;
      const uint32_t delta = tiles.delta + do_place.stage * Shape::kRowBytes + (lane % 4) * 8;
      WaitBarrier(SharedAddress(&b.do_full[do_place.stage]), do_place.parity);
      if (step.rows < kQueries) {
        ZeroRows<kQueries, kDim, 128>(do_tile, step.rows, thread);
        FenceSharedForAsync();
        NamedBarrierArrive(kZeroedDoutBarrier, 256);
        NamedBarrierSync(kWarpgroupBarrier + 1, 128);
      }
      float dp[kQueries / 2];
      StartScores<Shape>(dp, tiles.v, do_tile);
      covered |= FindSeenKeys<Shape>(step, 0, first_key).of_task;
      WgmmaWait<0>();
      if (last) release(b.v_empty);
      SubtractDelta<Shape>(dp, delta);

      NamedBarrierSync(kProbabilitiesBarrier, 256);
      uint32_t ds[kQueries / 16][4];
#pragma unroll
      for (int i = 0; i < kQueries / 16; ++i) {
        const uint4 four = LoadShared16(tiles.exchange + i * 2048 + thread * 16);
        const uint32_t probabilities[4] = {four.x, four.y, four.z, four.w};
        TakeScoreGradients<Shape>(ds[i], probabilities, dp, i);
        StoreMatrices(
            tiles.ds + ElementOffset<kKeys>(thread / 32 * 16 + lane % 16, i * 16 + lane / 16 * 8),
            ds[i][0], ds[i][1], ds[i][2], ds[i][3]);
      }
      FenceSharedForAsync();
      NamedBarrierArrive(kScoreGradientsBarrier, 256);
      release(b.do_empty[do_place.stage]);
      NamedBarrierSync(kWarpgroupBarrier + 1, 128);

      float dq[2][32];
      StartHalfQueryGradient<Shape>(dq[0], dq[1], tiles, 1);
      StartKeyGradient<Shape>(dk, ds, tiles.q + place.stage * Shape::kQueryBytes);
      WgmmaWait<2>();
      leave(dq[0]);
      WgmmaWait<1>();
      if (last) release(b.k_empty[0]);
      leave(dq[1]);
      WgmmaWait<0>();
      release(b.q_empty[place.stage]);
      place.Advance();
    }

    const BackwardKeys keys = notes[round % kKeyNotes];
    StoreGradient<kDim>(dk, params.dk, params.dk_stride, int64_t{keys.kv_begin} + first_key,
                        keys.kv_head * p.head_dim, p.head_dim, p.scale, params.mode, covered, lane);
  }
  if (thread == 0) NameContribution(b, contributions, 2 + place.stage, {-1, 0});
}

#endif  // EK_HAS_SM90A

}  // namespace evenkeel
