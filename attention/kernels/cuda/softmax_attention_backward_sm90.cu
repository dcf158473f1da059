// Backward pass on Hopper, with the formulas, the order and the turns of
// softmax_attention_backward.cu. Two warpgroups own 64 keys each of a tile of 128 and compute
// transposed scores, keys by queries:
//   S^T = K Q^T, dP^T = V dO^T;  P^T and dS^T stay in registers as left operands of
//   dV += P^T dO, dK += dS^T Q;  dS^T goes to shared memory once, for dQ^T = K^T dS^T, of which
//   each warpgroup computes one half and leaves it in shared memory.
// The warps of a third warpgroup move data: the first feeds Q, dO, lse and delta by bulk copies,
// two stages ahead; the next two add a half of dQ each to memory, by bulk reductions, in turn.
// (Additions by the threads that multiply cost a sixth of the time: they wait while their stores
// are accepted.)
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "attention/kernels/cuda/hopper.cuh"
#include "attention/kernels/cuda/mma.cuh"
#include "attention/kernels/cuda/softmax_attention_sm90.h"
#include "attention/kernels/cuda/softmax_backward_walk.cuh"
#include "attention/kernels/cuda/softmax_backward_workspace.h"
#include "attention/kernels/cuda/tensor_map.h"

namespace evenkeel {
namespace {

template <int kDim>
struct Sm90BackwardShape {
  static constexpr int kHeadDim = kDim;
  static constexpr int kThreads = 384;
  static constexpr int kKeys = 128;
  static constexpr int kQueries = kDim == 64 ? 128 : 64;
  static constexpr int kKeyBytes = kKeys * kDim * 2;
  static constexpr int kQueryBytes = kQueries * kDim * 2;
  static constexpr int kScoreBytes = kKeys * kQueries * 2;
  static constexpr int kRowBytes = kQueries * 4;       // of lse, and of delta
  static constexpr int kTileFloats = kQueries * kDim;  // of dQ
  static constexpr int kHalfFloats = kTileFloats / 2;  // a warpgroup's
  static constexpr int kSharedBytes =
      1024 + 2 * kKeyBytes + 2 * (2 * kQueryBytes + kScoreBytes + 2 * kRowBytes) + kTileFloats * 4;
};

struct BackwardTensorMaps {
  CUtensorMap q, dout, k, v;
};

struct BackwardBarriers {
  uint64_t keys_full;
  uint64_t q_full[2], q_empty[2], do_full[2], do_empty[2];
  uint64_t dq_full[2], dq_empty[2];  // of the halves of dQ
};

// One step of the consumers, told by the producer beside the query tile: they have no registers to
// spare for the walk itself.
struct BackwardStep {
  int tile;  // of dQ, and of the counters; -1 after the last step
  int turn;  // contributions to the tile before this one
  int rows;  // of the query tile, may exceed its size
  // Key c of the key tile is seen by query i of the tile if begin <= c < min(end + i, limit).
  int begin;
  int end;
  int limit;
};

// What the consumers say of a half of dQ in shared memory.
struct Contribution {
  int tile;  // -1 after the last
  int turn;
};

// Shared memory of a block. The two stages of a piece, and the two halves of dq, follow one
// another.
struct BackwardTiles {
  uint32_t k, v, q, dout, ds, lse, delta, dq;
};

#if defined(EK_HAS_SM90A)

constexpr int kConsumersBarrier = 1;

template <typename Shape>
__device__ __forceinline__ void ProduceQueries(const SoftmaxBackwardParams& params,
                                               const SoftmaxBackwardWorkspace& w,
                                               const BackwardTensorMaps& maps, BackwardBarriers& b,
                                               const BackwardTiles& tiles, BackwardStep* steps,
                                               const KeyTile& keys, int kv_head, int lane) {
  const SoftmaxForwardParams& p = params.forward;
  const int group = p.num_heads / p.num_kv_heads;
  if (lane == 0) {
    const uint32_t full = SharedAddress(&b.keys_full);
    CopyTile<Shape::kKeys, Shape::kHeadDim>(tiles.k, &maps.k, full, kv_head, keys.kv_begin,
                                            Shape::kKeyBytes);
#pragma unroll
    for (int panel = 0; panel < Shape::kHeadDim / 64; ++panel) {
      CopyBox(tiles.v + panel * Shape::kKeys * 128, &maps.v, full, panel * 64, kv_head,
              keys.kv_begin);
    }
  }
  RingPlace place;
  Walk walk;
  SeekTask<Shape>(walk, p.plan.tasks, keys, keys.task_begin, lane);
  while (walk.valid) {
    if (lane == 0) {
      const int head = kv_head * group + walk.group_head;
      // Read again rather than kept: this warp has 24 registers a thread.
      const PlannedTask& task = p.plan.tasks[walk.task_index];
      const int row = task.q_begin + walk.tile * Shape::kQueries;
      const int tile = (task.first_tile + walk.tile) * p.num_heads + head;
      const int64_t statistics = int64_t{tile} * Shape::kQueries;
      const uint32_t q_full = SharedAddress(&b.q_full[place.stage]);
      const uint32_t do_full = SharedAddress(&b.do_full[place.stage]);
      WaitBarrier(SharedAddress(&b.q_empty[place.stage]), place.parity ^ 1);
      const int begin = task.kv_begin - keys.kv_begin;
      steps[place.stage] = {tile,
                            (keys.kv_begin - task.first_key_tile_row) / Shape::kKeys,
                            task.q_len - walk.tile * Shape::kQueries,
                            begin,
                            begin + task.visible + walk.tile * Shape::kQueries,
                            begin + task.kv_len};
      CopyTile<Shape::kQueries, Shape::kHeadDim>(tiles.q + place.stage * Shape::kQueryBytes,
                                                 &maps.q, q_full, head, row, Shape::kRowBytes);
      CopyBytes(tiles.lse + place.stage * Shape::kRowBytes, w.lse + statistics, Shape::kRowBytes,
                q_full);
      WaitBarrier(SharedAddress(&b.do_empty[place.stage]), place.parity ^ 1);
      CopyTile<Shape::kQueries, Shape::kHeadDim>(tiles.dout + place.stage * Shape::kQueryBytes,
                                                 &maps.dout, do_full, head, row, Shape::kRowBytes);
      CopyBytes(tiles.delta + place.stage * Shape::kRowBytes, w.delta + statistics,
                Shape::kRowBytes, do_full);
    }
    __syncwarp();
    place.Advance();
    Advance<Shape>(walk, p.plan.tasks, keys, group, lane);
  }
  if (lane == 0) {
    WaitBarrier(SharedAddress(&b.q_empty[place.stage]), place.parity ^ 1);
    steps[place.stage].tile = -1;
    Arrive(SharedAddress(&b.q_full[place.stage]));
  }
}

// acc [64 keys, kQueries] = rows [64, D] of the key tile times the query tile, transposed.
template <typename Shape>
__device__ __forceinline__ void StartScores(float (&acc)[Shape::kQueries / 2], uint32_t key_rows,
                                            uint32_t query_tile) {
  WgmmaFence();
#pragma unroll
  for (int d = 0; d < Shape::kHeadDim; d += 16) {
    const uint32_t within = (d % 64) * 2;
    Wgmma(acc, OperandDescriptor(key_rows + d / 64 * (Shape::kKeys * 128) + within, 16),
          OperandDescriptor(query_tile + d / 64 * (Shape::kQueries * 128) + within, 16), d > 0);
  }
  WgmmaCommit();
}

// acc [64 keys, D] += left [64 keys, kQueries] (query tile [kQueries, D]).
template <typename Shape>
__device__ __forceinline__ void StartKeyGradient(float (&acc)[Shape::kHeadDim / 2],
                                                 const uint32_t (&left)[Shape::kQueries / 16][4],
                                                 uint32_t query_tile) {
  WgmmaFence();
#pragma unroll
  for (int i = 0; i < Shape::kQueries / 16; ++i) {
    WgmmaRowMajorB(acc, left[i],
                   OperandDescriptor(query_tile + i * 16 * 128, Shape::kQueries * 128));
  }
  WgmmaCommit();
}

__device__ __forceinline__ float2 LoadShared8(uint32_t address) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
  return v;
}

__device__ __forceinline__ void StoreShared16(uint32_t address, float a, float b, float c,
                                              float d) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(a), "f"(b), "f"(c),
               "f"(d)
               : "memory");
}

// A thread that adds one half of every dQ tile to memory, each when its turn has come.
template <typename Shape>
__device__ __forceinline__ void AddQueryGradients(const SoftmaxBackwardWorkspace& w,
                                                  BackwardBarriers& b, const BackwardTiles& tiles,
                                                  const Contribution* contributions, int half) {
  constexpr int kBytes = Shape::kHalfFloats * 4;
  const uint32_t source = tiles.dq + half * kBytes;
  for (uint32_t parity = 0;; parity ^= 1) {
    WaitBarrier(SharedAddress(&b.dq_full[half]), parity);
    const Contribution now = contributions[half];
    if (now.tile < 0) return;
    uint32_t* const counter = w.counters + 1 + int64_t{now.tile} * 2 + half;
    float* const target = w.dq + int64_t{now.tile} * Shape::kTileFloats + half * Shape::kHalfFloats;
    while (ReadCounter(counter) != static_cast<uint32_t>(now.turn)) {
    }
    __threadfence();
    if (now.turn == 0) {
      StoreBytes(target, source, kBytes);
    } else {
      AddFloats(target, source, kBytes);
    }
    CommitTransfers();
    WaitTransfersRead();
    Arrive(SharedAddress(&b.dq_empty[half]));
    WaitTransfersDone();
    CountContribution(counter);
  }
}

// The warpgroup's 64 keys of dK or dV.
template <int kDim>
__device__ __forceinline__ void StoreGradient(const float (&acc)[kDim / 2], void* target,
                                              int64_t stride, int64_t row, int head_col, int dim,
                                              float scale, bool accumulate, uint32_t covered,
                                              int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if ((covered >> half & 1) == 0) continue;
    const int64_t at = (row + half * 8) * stride + head_col;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const int column = n * 8 + (lane % 4) * 2;
      if (column >= dim) continue;
      const float x = acc[n * 4 + half * 2] * scale, y = acc[n * 4 + half * 2 + 1] * scale;
      if (accumulate) {
        auto* place = reinterpret_cast<float2*>(static_cast<float*>(target) + at + column);
        const float2 old = *place;
        *place = make_float2(old.x + x, old.y + y);
      } else {
        *reinterpret_cast<uint32_t*>(static_cast<Bf16*>(target) + at + column) = PackBf16(x, y);
      }
    }
  }
}

template <typename Shape>
__device__ __forceinline__ void ConsumeQueries(const SoftmaxBackwardParams& params,
                                               BackwardBarriers& b, const BackwardTiles& tiles,
                                               const BackwardStep* steps,
                                               Contribution* contributions, const KeyTile& keys,
                                               int kv_head, int consumer) {
  constexpr int kDim = Shape::kHeadDim, kQueries = Shape::kQueries, kKeys = Shape::kKeys;
  const SoftmaxForwardParams& p = params.forward;
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  const int first_key = consumer * 64 + warp * 16 + lane / 4;  // and the one 8 further
  const float scale = p.scale * kLog2E;
  // Every thread arrives: lse, delta and the step were read by ordinary loads.
  const auto release = [&](uint64_t& barrier) { Arrive(SharedAddress(&barrier)); };

  float dk[kDim / 2], dv[kDim / 2];
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) dk[i] = dv[i] = 0.0f;
  uint32_t covered = 0, dq_parity = 0;
  RingPlace place;

  WaitBarrier(SharedAddress(&b.keys_full), 0);
  // Rows past the end hold whatever lies there: 0 times NaN would be NaN.
  if (keys.kv_rows < kKeys) {
    ZeroRows<kKeys, kDim, 256>(tiles.k, keys.kv_rows, threadIdx.x - 128);
    ZeroRows<kKeys, kDim, 256>(tiles.v, keys.kv_rows, threadIdx.x - 128);
    FenceSharedForAsync();
    NamedBarrierSync(kConsumersBarrier, 256);
  }
  const uint32_t k_rows = tiles.k + consumer * 64 * 128, v_rows = tiles.v + consumer * 64 * 128;

  while (true) {
    WaitBarrier(SharedAddress(&b.q_full[place.stage]), place.parity);
    const BackwardStep step = steps[place.stage];
    if (step.tile < 0) break;
    const uint32_t q_tile = tiles.q + place.stage * Shape::kQueryBytes;
    const uint32_t do_tile = tiles.dout + place.stage * Shape::kQueryBytes;
    const uint32_t ds_tile = tiles.ds + place.stage * Shape::kScoreBytes;
    const uint32_t lse = tiles.lse + place.stage * Shape::kRowBytes + (lane % 4) * 8;
    const uint32_t delta = tiles.delta + place.stage * Shape::kRowBytes + (lane % 4) * 8;

    if (step.rows < kQueries) {
      WaitBarrier(SharedAddress(&b.do_full[place.stage]), place.parity);
      ZeroRows<kQueries, kDim, 256>(q_tile, step.rows, threadIdx.x - 128);
      ZeroRows<kQueries, kDim, 256>(do_tile, step.rows, threadIdx.x - 128);
      FenceSharedForAsync();
      NamedBarrierSync(kConsumersBarrier, 256);
    }
    float s[kQueries / 2], dp[kQueries / 2];
    StartScores<Shape>(s, k_rows, q_tile);
    WaitBarrier(SharedAddress(&b.do_full[place.stage]), place.parity);
    StartScores<Shape>(dp, v_rows, do_tile);

    const bool whole =
        step.begin <= consumer * 64 && min(step.end, step.limit) >= consumer * 64 + 64;
    // The first query that sees the thread's keys; none does if they are not the task's.
    int first_query[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = first_key + half * 8;
      const bool of_task = key >= step.begin && key < step.limit;
      first_query[half] = of_task ? key - step.end + 1 : kQueries;
      if (of_task) covered |= 1u << half;
    }

    WgmmaWait<1>();
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n) {
      const float2 row_lse = LoadShared8(lse + n * 32);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float x = Exp2(s[n * 4 + e] * scale - (e % 2 == 0 ? row_lse.x : row_lse.y));
        if (!whole) {
          if (n * 8 + (lane % 4) * 2 + (e & 1) < first_query[e >> 1]) x = 0.0f;
        }
        s[n * 4 + e] = x;
      }
    }
    uint32_t probabilities[kQueries / 16][4];
#pragma unroll
    for (int i = 0; i < kQueries / 16; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        probabilities[i][e] = PackBf16(s[i * 8 + e * 2], s[i * 8 + e * 2 + 1]);
      }
    }
    WgmmaWait<0>();
    uint32_t ds[kQueries / 16][4];
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n) {
      const float2 row_delta = LoadShared8(delta + n * 32);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = n * 4 + half * 2;
        const uint32_t pair =
            PackBf16(s[i] * (dp[i] - row_delta.x), s[i + 1] * (dp[i + 1] - row_delta.y));
        ds[n / 2][(n % 2) * 2 + half] = pair;
        StoreShared4(ds_tile + ElementOffset<kKeys>(first_key + half * 8, n * 8 + (lane % 4) * 2),
                     pair);
      }
    }
    FenceSharedForAsync();
    StartKeyGradient<Shape>(dv, probabilities, do_tile);
    NamedBarrierSync(kConsumersBarrier, 256);

    // D = 128: each warpgroup takes 64 columns of K. D = 64: each takes 64 of the queries.
    float dq[32];
    const uint32_t k_columns = tiles.k + (kDim == 128 ? consumer * kKeys * 128 : 0);
    const uint32_t ds_columns = ds_tile + (kDim == 128 ? 0 : consumer * kKeys * 128);
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
      WgmmaTransposed(dq, OperandDescriptor(k_columns + i * 16 * 128, 16),
                      OperandDescriptor(ds_columns + i * 16 * 128, 16), i > 0);
    }
    WgmmaCommit();
    StartKeyGradient<Shape>(dk, ds, q_tile);
    WgmmaWait<1>();
    release(b.do_empty[place.stage]);

    WaitBarrier(SharedAddress(&b.dq_empty[consumer]), dq_parity ^ 1);
    const uint32_t dq_place = tiles.dq + consumer * Shape::kHalfFloats * 4 + thread * 16;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      StoreShared16(dq_place + n * 2048, dq[n * 4], dq[n * 4 + 1], dq[n * 4 + 2], dq[n * 4 + 3]);
    }
    if (thread == 0) contributions[consumer] = {step.tile, step.turn};
    FenceSharedForAsync();
    release(b.dq_full[consumer]);
    dq_parity ^= 1;
    WgmmaWait<0>();
    release(b.q_empty[place.stage]);
    place.Advance();
  }
  WaitBarrier(SharedAddress(&b.dq_empty[consumer]), dq_parity ^ 1);
  if (thread == 0) contributions[consumer].tile = -1;
  release(b.dq_full[consumer]);

  const int64_t row = int64_t{keys.kv_begin} + first_key;
  StoreGradient<kDim>(dk, params.dk, params.dk_stride, row, kv_head * p.head_dim, p.head_dim,
                      p.scale, params.accumulate, covered, lane);
  StoreGradient<kDim>(dv, params.dv, params.dv_stride, row, kv_head * p.value_dim, p.value_dim,
                      1.0f, params.accumulate, covered, lane);
}

#endif  // EK_HAS_SM90A

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    SoftmaxBackwardSm90Kernel(const __grid_constant__ SoftmaxBackwardParams params,
                              const __grid_constant__ SoftmaxBackwardWorkspace w,
                              const __grid_constant__ BackwardTensorMaps maps) {
#if defined(EK_HAS_SM90A)
  extern __shared__ uint8_t shared[];
  __shared__ BackwardBarriers b;
  __shared__ BackwardStep steps[2];
  __shared__ Contribution contributions[2];
  __shared__ uint32_t ticket;
  BackwardTiles tiles;
  tiles.k = (SharedAddress(shared) + 1023) / 1024 * 1024;
  tiles.v = tiles.k + Shape::kKeyBytes;
  tiles.q = tiles.v + Shape::kKeyBytes;
  tiles.dout = tiles.q + 2 * Shape::kQueryBytes;
  tiles.ds = tiles.dout + 2 * Shape::kQueryBytes;
  tiles.lse = tiles.ds + 2 * Shape::kScoreBytes;
  tiles.delta = tiles.lse + 2 * Shape::kRowBytes;
  tiles.dq = tiles.delta + 2 * Shape::kRowBytes;
  if (threadIdx.x == 0) {
    // Tickets, not block indices: a block may wait only for blocks that run already.
    ticket = atomicAdd(w.counters, 1);
    InitBarrier(SharedAddress(&b.keys_full), 1);
    for (int i = 0; i < 2; ++i) {
      InitBarrier(SharedAddress(&b.q_full[i]), 1);
      InitBarrier(SharedAddress(&b.do_full[i]), 1);
      InitBarrier(SharedAddress(&b.q_empty[i]), 256);  // consumer threads
      InitBarrier(SharedAddress(&b.do_empty[i]), 256);
      InitBarrier(SharedAddress(&b.dq_full[i]), 128);  // a warpgroup's threads
      InitBarrier(SharedAddress(&b.dq_empty[i]), 1);
    }
    FenceSharedForAsync();
  }
  __syncthreads();
  const SoftmaxForwardParams& p = params.forward;
  const KeyTile keys = p.plan.key_tiles[ticket / p.num_kv_heads];
  const int kv_head = ticket % p.num_kv_heads;
  if (threadIdx.x < 128) {
    LowerRegisters<24>();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp == 0) {
      ProduceQueries<Shape>(params, w, maps, b, tiles, steps, keys, kv_head, lane);
    } else if (warp < 3 && lane == 0) {
      AddQueryGradients<Shape>(w, b, tiles, contributions, warp - 1);
    }
  } else {
    RaiseRegisters<240>();  // what the other warps gave back: 384 threads begin with 168
    ConsumeQueries<Shape>(params, b, tiles, steps, contributions, keys, kv_head,
                          threadIdx.x / 128 - 1);
  }
#endif
}

// Rounds the summed dQ, from the order of the accumulators of dQ^T to rows. One block per query
// tile and head.
template <typename Shape>
__global__ void __launch_bounds__(256)
    RoundDqSm90Kernel(const __grid_constant__ SoftmaxBackwardParams params, const float* dq) {
  constexpr int kPitch = Shape::kHeadDim + 8;  // elements; keeps rows 16 bytes aligned
  __shared__ __align__(16) Bf16 rows[Shape::kQueries * kPitch];
  const SoftmaxForwardParams& p = params.forward;
  const int head = blockIdx.x % p.num_heads;
  const QueryTile tile = p.plan.query_tiles[blockIdx.x / p.num_heads];
  const float* source = dq + int64_t{blockIdx.x} * Shape::kTileFloats;
  const bool empty = tile.num_keys <= 0;  // no block has written this tile
  const int consumer = threadIdx.x / 128, thread = threadIdx.x % 128;
  const int warp = thread / 32, lane = thread % 32;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (!empty) {
      x = *reinterpret_cast<const float4*>(source + consumer * Shape::kHalfFloats + n * 512 +
                                           thread * 4);
    }
    const int d = (Shape::kHeadDim == 128 ? consumer * 64 : 0) + warp * 16 + lane / 4;
    const int query = (Shape::kHeadDim == 128 ? 0 : consumer * 64) + n * 8 + (lane % 4) * 2;
    rows[query * kPitch + d] = __float2bfloat16(x.x * p.scale);
    rows[(query + 1) * kPitch + d] = __float2bfloat16(x.y * p.scale);
    rows[query * kPitch + d + 8] = __float2bfloat16(x.z * p.scale);
    rows[(query + 1) * kPitch + d + 8] = __float2bfloat16(x.w * p.scale);
  }
  __syncthreads();
  constexpr int kChunks = Shape::kHeadDim / 8;
  Bf16* target =
      static_cast<Bf16*>(params.dq) + int64_t{tile.q_begin} * params.dq_stride + head * p.head_dim;
  for (int i = threadIdx.x; i < tile.q_rows * kChunks; i += 256) {
    const int row = i / kChunks, chunk = i % kChunks;
    if (chunk * 8 < p.head_dim) {
      *reinterpret_cast<uint4*>(target + row * params.dq_stride + chunk * 8) =
          *reinterpret_cast<const uint4*>(&rows[row * kPitch + chunk * 8]);
    }
  }
}

template <int kDim>
cudaError_t Launch(const SoftmaxBackwardParams& params, cudaStream_t stream) {
  using Shape = Sm90BackwardShape<kDim>;
  const SoftmaxForwardParams& p = params.forward;
  if (p.plan.tiling.backward_queries != Shape::kQueries ||
      p.plan.tiling.backward_keys != Shape::kKeys) {
    return cudaErrorInvalidValue;
  }
  size_t bytes = 0;
  const SoftmaxBackwardWorkspace w = LayOutSoftmaxBackward(
      params.workspace, p.plan.num_query_tiles, Shape::kQueries, p.num_heads, kDim, &bytes);
  cudaError_t error = LaunchSoftmaxBackwardStatistics(params, w, stream);
  if (error != cudaSuccess) return error;
  if (p.plan.num_key_tiles > 0) {
    BackwardTensorMaps maps;
    error = EncodeTensorMap(&maps.q, p.q, p.q_rows, p.num_heads, p.head_dim, p.q_stride,
                            Shape::kQueries);
    if (error == cudaSuccess) {
      error = EncodeTensorMap(&maps.dout, params.dout, p.q_rows, p.num_heads, p.value_dim,
                              params.dout_stride, Shape::kQueries);
    }
    if (error == cudaSuccess) {
      error = EncodeTensorMap(&maps.k, p.k, p.kv_rows, p.num_kv_heads, p.head_dim, p.k_stride,
                              Shape::kKeys);
    }
    if (error == cudaSuccess) {
      error = EncodeTensorMap(&maps.v, p.v, p.kv_rows, p.num_kv_heads, p.value_dim, p.v_stride,
                              Shape::kKeys);
    }
    const auto kernel = SoftmaxBackwardSm90Kernel<Shape>;
    if (error == cudaSuccess) {
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   Shape::kSharedBytes);
    }
    if (error != cudaSuccess) return error;
    const auto blocks = static_cast<unsigned>(p.plan.num_key_tiles * p.num_kv_heads);
    kernel<<<blocks, Shape::kThreads, Shape::kSharedBytes, stream>>>(params, w, maps);
  }
  const auto query_blocks = static_cast<unsigned>(p.plan.num_query_tiles * p.num_heads);
  RoundDqSm90Kernel<Shape><<<query_blocks, 256, 0, stream>>>(params, w.dq);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchSoftmaxBackwardSm90(const SoftmaxBackwardParams& params, cudaStream_t stream) {
  const int dim = std::max(params.forward.head_dim, params.forward.value_dim);
  return dim <= 64 ? Launch<64>(params, stream) : Launch<128>(params, stream);
}

}  // namespace evenkeel
