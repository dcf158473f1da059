// Maximum and sum of exponentials of a row of logits, in one pass: by a thread, then over the
// threads that share the row.
#pragma once

#include <cmath>

#include "runtime/ops/cuda/row_pieces.cuh"

namespace evenkeel::softmax_rows {

constexpr float kLn2 = 0.6931471805599453f;

// exp(z - offset). The difference comes first, exact where it matters: a product of z and log2(e)
// alone would round in proportion to z.
__device__ __forceinline__ float ExpOf(float z, float offset) {
  return row_pieces::FastExp(z - offset);
}

// Running maximum of z and sum of exp(z - max). A maximum of -inf counts as 0, so that
// leading -inf logits add nothing rather than NaN.
struct Running {
  float max = -INFINITY;
  float sum = 0.0f;

  static __device__ __forceinline__ float Offset(float max) {
    return max == -INFINITY ? 0.0f : max;
  }
  template <int kSize>
  __device__ __forceinline__ void Add(const float (&z)[kSize]) {
    float most = z[0];
#pragma unroll
    for (int j = 1; j < kSize; ++j) most = fmaxf(most, z[j]);
    if (most > max) {
      sum *= ExpOf(max, Offset(most));
      max = most;
    }
    const float offset = Offset(max);
    float terms[kSize];
#pragma unroll
    for (int j = 0; j < kSize; ++j) terms[j] = ExpOf(z[j], offset);
#pragma unroll
    for (int step = kSize / 2; step > 0; step /= 2) {
#pragma unroll
      for (int j = 0; j < step; ++j) terms[j] += terms[j + step];
    }
    sum += terms[0];
  }
};

// Over the lanes of a warp; every lane receives the result.
__device__ __forceinline__ Running MergeWarp(Running r) {
  float max = r.max;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, step));
  }
  const float sum = r.sum * ExpOf(r.max, Running::Offset(max));
  return {max, row_pieces::WarpSum(sum)};
}

// Over the block; every thread receives the result. scratch [32] may be used again once every
// thread has passed another barrier.
__device__ __forceinline__ Running MergeBlock(Running r, float2* scratch) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  r = MergeWarp(r);
  if (lane == 0) scratch[threadIdx.x / 32] = make_float2(r.max, r.sum);
  __syncthreads();
  r = Running();
  if (lane < static_cast<int>(blockDim.x / 32)) r = {scratch[lane].x, scratch[lane].y};
  return MergeWarp(r);
}

}  // namespace evenkeel::softmax_rows
