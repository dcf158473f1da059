// The warpgroups that multiply in the Hopper backward pass up to a head size of 128. Two own 64
// keys each of a tile of 128 and compute transposed scores, keys by queries:
//   S^T = K Q^T, dP^T = V dO^T;  P^T and dS^T stay in registers as left operands of
//   dV += P^T dO, dK += dS^T Q;  dS^T also goes to shared memory, for the third.
// The third computes dQ^T = K^T dS^T. So the first two wait for nobody but the third, which is
// behind them: while one takes exponentials the others multiply.
//
// A step of 64 queries at head size 128, or 128 at 64, is 2,560 cycles of products, and moves some
// 370 KB through shared memory, 2,900 cycles. It also moves 32 KB of Q and dO and 32 KB of dQ from
// and to the L2 cache. That is what a step waits for most (docs/kernels.md has it without either),
// so at 128 there are three stages of Q, which is needed from the first to the last product.
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

constexpr int kKeyOwnersBarrier = 1;  // among the 256 threads of both

// One of the two that own keys; owner: 0 or 1.
template <typename Shape>
__device__ __forceinline__ void ConsumeForOwnKeys(const SoftmaxBackwardParams& params,
                                                  BackwardBarriers& b, const BackwardTiles& tiles,
                                                  const BackwardStep* steps,
                                                  const BackwardKeys* notes, int owner) {
  constexpr int kDim = Shape::kHeadDim, kQueries = Shape::kQueries, kKeys = Shape::kKeys;
  const SoftmaxForwardParams& p = params.forward;
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  const int first_key = owner * 64 + warp * 16 + lane / 4;  // and the one 8 further
  // Where the lane's row of four 8 x 8 matrices of dS^T goes.
  const int matrix_row = owner * 64 + warp * 16 + lane % 16, matrix_column = lane / 16 * 8;
  const float scale = p.scale * kLog2E;
  // Every thread arrives: lse, delta and the step were read by ordinary loads.
  const auto release = [&](uint64_t& barrier) { Arrive(SharedAddress(&barrier)); };

  RingPlace<Shape::kQueryStages> q_place;
  RingPlace<2> place;                   // of dO
  for (uint32_t round = 0;; ++round) {  // over key tiles
    WaitBarrier(SharedAddress(&b.q_full[q_place.stage]), q_place.parity);
    if (steps[q_place.stage].tile < 0) break;
    const uint32_t k_tile = tiles.k + round % 2 * Shape::kKeyBytes;
    WaitBarrier(SharedAddress(&b.k_full[round % 2]), round / 2 % 2);
    // Rows past the end hold whatever lies there: 0 times NaN would be NaN.
    const int kv_rows = notes[round % kKeyNotes].kv_rows;
    if (kv_rows < kKeys) {
      WaitBarrier(SharedAddress(&b.v_full), round % 2);
      ZeroRows<kKeys, kDim, 256>(k_tile, kv_rows, owner * 128 + thread);
      ZeroRows<kKeys, kDim, 256>(tiles.v, kv_rows, owner * 128 + thread);
      FenceSharedForAsync();
      NamedBarrierSync(kKeyOwnersBarrier, 256);
    }
    const uint32_t k_rows = k_tile + owner * 64 * 128, v_rows = tiles.v + owner * 64 * 128;
    float dk[kDim / 2], dv[kDim / 2];
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) dk[i] = dv[i] = 0.0f;
    uint32_t covered = 0;

    for (bool first = true, last = false; !last; first = false) {
      WaitBarrier(SharedAddress(&b.q_full[q_place.stage]), q_place.parity);
      const BackwardStep step = steps[q_place.stage];
      last = step.last;
      const uint32_t q_tile = tiles.q + q_place.stage * Shape::kQueryBytes;
      const uint32_t do_tile = tiles.dout + place.stage * Shape::kQueryBytes;
      const uint32_t lse = tiles.lse + q_place.stage * Shape::kRowBytes + (lane % 4) * 8;
      const uint32_t delta = tiles.delta + place.stage * Shape::kRowBytes + (lane % 4) * 8;
      if (step.rows < kQueries) {
        WaitBarrier(SharedAddress(&b.do_full[place.stage]), place.parity);
        ZeroRows<kQueries, kDim, 256>(q_tile, step.rows, owner * 128 + thread);
        ZeroRows<kQueries, kDim, 256>(do_tile, step.rows, owner * 128 + thread);
        FenceSharedForAsync();
        NamedBarrierSync(kKeyOwnersBarrier, 256);
      }
      // The step before may still be at dK.
      float s[kQueries / 2], dp[kQueries / 2];
      StartScores<Shape>(s, k_rows, q_tile);
      const SeenKeys seen = FindSeenKeys<Shape>(step, owner * 64, first_key);
      covered |= seen.of_task;
      WgmmaWait<1>();
      if (!first) release(b.q_empty[q_place.StageBefore()]);
      WgmmaWait<0>();
      if (last) release(b.k_empty[round % 2]);
      uint32_t probabilities[kQueries / 16][4];
      TakeProbabilities<Shape>(s, probabilities, lse, scale, seen, lane);
      WaitBarrier(SharedAddress(&b.v_full), round % 2);
      WaitBarrier(SharedAddress(&b.do_full[place.stage]), place.parity);
      StartScores<Shape>(dp, v_rows, do_tile);
      StartKeyGradient<Shape>(dv, probabilities, do_tile);
      WgmmaWait<1>();
      if (last) release(b.v_empty);
      SubtractDelta<Shape>(dp, delta);
      // Only then are there registers for dS.
      WgmmaWait<0>();
      release(b.do_empty[place.stage]);

      uint32_t ds[kQueries / 16][4];
      const auto ds_place = InStepWith<Shape::kScoreStages>(place);
      const uint32_t ds_tile = tiles.ds + ds_place.stage * Shape::kScoreBytes;
      WaitBarrier(SharedAddress(&b.ds_empty[ds_place.stage]), ds_place.parity ^ 1);
#pragma unroll
      for (int i = 0; i < kQueries / 16; ++i) {
        TakeScoreGradients<Shape>(ds[i], probabilities[i], dp, i);
        StoreMatrices(ds_tile + ElementOffset<kKeys>(matrix_row, i * 16 + matrix_column), ds[i][0],
                      ds[i][1], ds[i][2], ds[i][3]);
      }
      FenceSharedForAsync();
      release(b.ds_full[ds_place.stage]);
      StartKeyGradient<Shape>(dk, ds, q_tile);
      place.Advance();
      q_place.Advance();
    }
    WgmmaWait<0>();
    release(b.q_empty[q_place.StageBefore()]);

    const BackwardKeys keys = notes[round % kKeyNotes];
    const int64_t row = int64_t{keys.kv_begin} + first_key;
    StoreGradient<kDim>(dk, params.dk, params.dk_stride, row, keys.kv_head * p.head_dim, p.head_dim,
                        p.scale, params.mode, covered, lane);
    StoreGradient<kDim>(dv, params.dv, params.dv_stride, row, keys.kv_head * p.value_dim,
                        p.value_dim, 1.0f, params.mode, covered, lane);
  }
}

// The third.
template <typename Shape>
__device__ __forceinline__ void ConsumeForQueries(BackwardBarriers& b, const BackwardTiles& tiles,
                                                  const BackwardStep* steps,
                                                  Contribution* contributions) {
  constexpr int kKeys = Shape::kKeys;
  const int thread = threadIdx.x % 128;
  uint32_t round = 0;
  RingPlace<Shape::kQueryStages> q_place;
  for (RingPlace<2> place;; place.Advance(), q_place.Advance()) {
    WaitBarrier(SharedAddress(&b.q_full[q_place.stage]), q_place.parity);
    const int tile = steps[q_place.stage].tile, turn = steps[q_place.stage].turn;
    const bool last = steps[q_place.stage].last;
    Arrive(SharedAddress(&b.q_empty[q_place.stage]));
    const uint32_t step_parity = place.stage;
    if (tile < 0) {
      if (thread == 0) {
        WaitBarrier(SharedAddress(&b.dq_empty[0]), step_parity ^ 1);  // both slots have been read
        for (int slot = 0; slot < 2; ++slot) NameContribution(b, contributions, slot, {-1, 0});
      }
      return;
    }
    // Early: that its turn has come is known by the time there is something to add.
    if (thread == 0) NameContribution(b, contributions, place.stage, {tile, turn});
    WaitBarrier(SharedAddress(&b.k_full[round % 2]), round / 2 % 2);
    const auto ds_place = InStepWith<Shape::kScoreStages>(place);
    WaitBarrier(SharedAddress(&b.ds_full[ds_place.stage]), ds_place.parity);
    const uint32_t k_tile = tiles.k + round % 2 * Shape::kKeyBytes;
    const uint32_t ds_tile = tiles.ds + ds_place.stage * Shape::kScoreBytes;
#pragma unroll 1
    for (int piece = 0; piece < 2; ++piece) {
      // D = 128: a piece is of 64 columns of K. D = 64: of 64 of the queries.
      float dq[32];
      StartQueryGradient<Shape>(dq, k_tile + (Shape::kHeadDim == 128 ? piece * kKeys * 128 : 0),
                                ds_tile + (Shape::kHeadDim == 128 ? 0 : piece * kKeys * 128));
      WgmmaWait<0>();
      if (piece == 1) {
        Arrive(SharedAddress(&b.ds_empty[ds_place.stage]));
        if (last) Arrive(SharedAddress(&b.k_empty[round % 2]));
      }
      WaitBarrier(SharedAddress(&b.dq_empty[piece]), step_parity ^ 1);
      LeaveQueryGradient<Shape>(dq, tiles, piece, thread);
      Arrive(SharedAddress(&b.dq_full[piece * 2 + place.stage]));
    }
    if (last) ++round;
  }
}

#endif  // EK_HAS_SM90A

}  // namespace evenkeel
