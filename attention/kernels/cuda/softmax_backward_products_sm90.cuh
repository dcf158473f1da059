// What the warpgroups of the Hopper backward pass multiply and store, whatever part of a key tile
// each of them owns.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "attention/kernels/cuda/hopper.cuh"
#include "attention/kernels/cuda/mma.cuh"
#include "attention/kernels/cuda/softmax_attention_cuda.h"
#include "attention/kernels/cuda/softmax_backward_block_sm90.cuh"
#include "attention/kernels/cuda/warpgroup_products.cuh"

namespace evenkeel {

#if defined(EK_HAS_SM90A)

// acc [64 keys, kQueries] = rows [64, D] of the key tile times the query tile, transposed.
template <typename Shape>
__device__ __forceinline__ void StartScores(float (&acc)[Shape::kQueries / 2], uint32_t key_rows,
                                            uint32_t query_tile) {
  StartRowProducts<Shape::kHeadDim, Shape::kKeys, Shape::kQueries>(acc, key_rows, query_tile);
}

// acc [64 keys, D] += left [64 keys, kQueries] (query tile [kQueries, D]).
template <typename Shape>
__device__ __forceinline__ void StartKeyGradient(float (&acc)[Shape::kHeadDim / 2],
                                                 const uint32_t (&left)[Shape::kQueries / 16][4],
                                                 uint32_t query_tile) {
  StartProduct<Shape::kQueries, Shape::kHeadDim>(acc, left, query_tile);
}

// A piece of dQ^T, dq [64 of D, 64 queries] = (64 columns of K)^T dS^T; k_columns: a panel of the
// key tile, ds_columns: one of dS^T [keys, queries].
template <typename Shape>
__device__ __forceinline__ void StartQueryGradient(float (&dq)[32], uint32_t k_columns,
                                                   uint32_t ds_columns) {
  WgmmaFence();
#pragma unroll
  for (int i = 0; i < Shape::kKeys / 16; ++i) {
    WgmmaTransposed(dq, OperandDescriptor(k_columns + i * 16 * 128, 16),
                    OperandDescriptor(ds_columns + i * 16 * 128, 16), i > 0);
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
__device__ __forceinline__ void StoreShared16(uint32_t address, const uint32_t (&words)[4]) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(words[0]),
               "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

// Which queries of a tile see a warpgroup's 64 keys, of which a thread has two, 8 apart.
struct SeenKeys {
  bool whole;  // every query sees all of the 64
  // The first query that sees the thread's keys; the number of queries if they are not the task's.
  int first_query[2];
  uint32_t of_task;  // a bit for each key
};

// warpgroup_key, thread_key: within the key tile, the first of each.
template <typename Shape>
__device__ __forceinline__ SeenKeys FindSeenKeys(const BackwardStep& step, int warpgroup_key,
                                                 int thread_key) {
  SeenKeys seen;
  seen.whole = step.begin <= warpgroup_key && min(step.end, step.limit) >= warpgroup_key + 64;
  seen.of_task = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int key = thread_key + half * 8;
    const bool of_task = key >= step.begin && key < step.limit;
    seen.first_query[half] = of_task ? key - step.end + 1 : Shape::kQueries;
    if (of_task) seen.of_task |= 1u << half;
  }
  return seen;
}

// Scores become probabilities, the left operand of the product that makes dV. lse: shared memory,
// of the thread's first query. scale: with log2(e) in it, as lse has.
template <typename Shape>
__device__ __forceinline__ void TakeProbabilities(
    const float (&s)[Shape::kQueries / 2], uint32_t (&probabilities)[Shape::kQueries / 16][4],
    uint32_t lse, float scale, const SeenKeys& seen, int lane) {
#pragma unroll
  for (int n = 0; n < Shape::kQueries / 8; ++n) {
    const float2 row_lse = LoadShared8(lse + n * 32);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x = Exp2(s[n * 4 + half * 2] * scale - row_lse.x);
      float y = Exp2(s[n * 4 + half * 2 + 1] * scale - row_lse.y);
      if (!seen.whole) {
        const int query = n * 8 + (lane % 4) * 2;
        if (query < seen.first_query[half]) x = 0.0f;
        if (query + 1 < seen.first_query[half]) y = 0.0f;
      }
      probabilities[n / 2][n % 2 * 2 + half] = PackBf16(x, y);
    }
  }
}

// delta: shared memory, of the thread's first query.
template <typename Shape>
__device__ __forceinline__ void SubtractDelta(float (&dp)[Shape::kQueries / 2], uint32_t delta) {
#pragma unroll
  for (int n = 0; n < Shape::kQueries / 8; ++n) {
    const float2 row_delta = LoadShared8(delta + n * 32);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      dp[n * 4 + half * 2] -= row_delta.x;
      dp[n * 4 + half * 2 + 1] -= row_delta.y;
    }
  }
}

// dS^T of queries [16 i, 16 i + 16), left operand of the product that makes dK, of dP - delta. Of
// probabilities in bf16, the numbers that dV is made from: in float32 they would take the registers
// that dP needs.
template <typename Shape>
__device__ __forceinline__ void TakeScoreGradients(uint32_t (&ds)[4],
                                                   const uint32_t (&probabilities)[4],
                                                   const float (&dp)[Shape::kQueries / 2], int i) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const float2 x = UnpackBf16(probabilities[e]);
    ds[e] = PackBf16(x.x * dp[i * 8 + e * 2], x.y * dp[i * 8 + e * 2 + 1]);
  }
}

// Leaves a piece of dQ, as it lies in the accumulators, for the warp that adds it to memory.
template <typename Shape>
__device__ __forceinline__ void LeaveQueryGradient(const float (&dq)[32],
                                                   const BackwardTiles& tiles, int place,
                                                   int thread) {
  const uint32_t at = tiles.dq + place * Shape::kPieceBytes + thread * 16;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    StoreShared16(at + n * 2048, dq[n * 4], dq[n * 4 + 1], dq[n * 4 + 2], dq[n * 4 + 3]);
  }
  FenceSharedForAsync();
}

// By one thread: the tile of dQ that the next pieces are of, or none.
__device__ __forceinline__ void NameContribution(BackwardBarriers& b, Contribution* contributions,
                                                 int slot, const Contribution& next) {
  contributions[slot] = next;
  Arrive(SharedAddress(&b.dq_named[slot]));
}

// The warpgroup's 64 keys of dK or dV. Nobody else adds to them, so additions in memory that nobody
// waits for have one order only. Two lanes exchange halves first, so that each writes four columns.
template <int kDim>
__device__ __forceinline__ void StoreGradient(const float (&acc)[kDim / 2], void* target,
                                              int64_t stride, int64_t row, int head_col, int dim,
                                              float scale, KeyGradientMode mode, uint32_t covered,
                                              int lane) {
  const bool odd = lane % 2 != 0;
  const int lane_column = odd ? 8 + (lane % 4 - 1) * 2 : lane % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t at = (row + half * 8) * stride + head_col;
#pragma unroll
    for (int n = 0; n < kDim / 8; n += 2) {
      const float left[2] = {acc[n * 4 + half * 2] * scale, acc[n * 4 + half * 2 + 1] * scale};
      const float right[2] = {acc[n * 4 + 4 + half * 2] * scale,
                              acc[n * 4 + 4 + half * 2 + 1] * scale};
      const float x = __shfl_xor_sync(0xffffffffu, odd ? left[0] : right[0], 1);
      const float y = __shfl_xor_sync(0xffffffffu, odd ? left[1] : right[1], 1);
      const int column = n * 8 + lane_column;
      if ((covered >> half & 1) == 0 || column >= dim) continue;
      const float a = odd ? x : left[0], b = odd ? y : left[1];
      const float c = odd ? right[0] : x, d = odd ? right[1] : y;
      if (mode == KeyGradientMode::kWriteBf16) {
        __stcs(reinterpret_cast<uint2*>(static_cast<Bf16*>(target) + at + column),
               make_uint2(PackBf16(a, b), PackBf16(c, d)));
      } else if (mode == KeyGradientMode::kWriteFloat32) {
        __stcs(reinterpret_cast<float4*>(static_cast<float*>(target) + at + column),
               make_float4(a, b, c, d));
      } else {
        asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(
                         static_cast<float*>(target) + at + column),
                     "f"(a), "f"(b), "f"(c), "f"(d)
                     : "memory");
      }
    }
  }
}

#endif  // EK_HAS_SM90A

}  // namespace evenkeel
