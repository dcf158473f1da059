// What a warpgroup of the Hopper forward pass does with a block of keys: products of its 64
// queries, and the online softmax between them. A thread holds two rows, 8 apart, of every
// accumulator.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

#include "attention/kernels/cuda/hopper.cuh"
#include "attention/kernels/cuda/mma.cuh"

namespace evenkeel {

#if defined(EK_HAS_SM90A)

// Of the two rows of a thread.
struct RowState {
  float max[2];
  float sum[2];
};

// 2^x for x up to about 8, relative error 3e-6, by products alone: 2^round(x) times a polynomial on
// [-1/2, 1/2], fitted to the least relative error. 0 is 2^-126, so not for scores that are masked.
__device__ __forceinline__ float Exp2ByProducts(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23, whose last bit is 1
  x = fmaxf(x, -126.0f);
  const float rounded = x + kRound;
  const float rest = x - (rounded - kRound);
  float y = 9.560510206e-03f;
  y = fmaf(y, rest, 5.591703917e-02f);
  y = fmaf(y, rest, 2.402498111e-01f);
  y = fmaf(y, rest, 6.931219677e-01f);
  y = fmaf(y, rest, 9.999991909e-01f);
  return __int_as_float(__float_as_int(y) + (__float_as_int(rounded) << 23));
}

// Scores become exponentials, relative to a row's `max`; `shrink` is what earlier sums and outputs
// are to be multiplied by. A max is raised only by kSlack and more: any number near the largest
// score does, since sums and outputs are in float32 and exponentials up to 2^kSlack have as many
// bits in bf16, and outputs need hardly ever be multiplied (Dao et al., FlashAttention-4, 2025).
// kByProducts of every 8 exponentials are made by products, as many as suit both units.
template <int kKeys, int kSlack, int kByProducts>
__device__ __forceinline__ void TakeExponentials(float (&s)[kKeys / 2], RowState& rows, float scale,
                                                 float (&shrink)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float most = s[half * 2];
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      most = fmaxf(most, fmaxf(s[n * 4 + half * 2], s[n * 4 + half * 2 + 1]));
    }
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
    most = fmaxf(most, rows.max[half]);
    if (kSlack > 0 && !((most - rows.max[half]) * scale > kSlack)) most = rows.max[half];
    // A row that has seen no key yet keeps -infinity; 0 stands in to avoid inf - inf.
    const float base = most == -INFINITY ? 0.0f : most * scale;
    shrink[half] = most == rows.max[half] ? 1.0f : Exp2(rows.max[half] * scale - base);
    rows.max[half] = most;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = s[n * 4 + half * 2 + e];
        x = x * scale - base;
        x = (n * 2 + e) % 8 < kByProducts ? Exp2ByProducts(x) : Exp2(x);
        sum += x;
      }
    }
    rows.sum[half] = rows.sum[half] * shrink[half] + sum;
  }
}

template <int kKeys>
__device__ __forceinline__ void RoundToOperand(uint32_t (&p)[kKeys / 16][4],
                                               const float (&s)[kKeys / 2]) {
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) p[k][i] = PackBf16(s[k * 8 + i * 2], s[k * 8 + i * 2 + 1]);
  }
}

// Key c (of the block) is seen by this lane's first row if c < visible, by its second, 8 rows
// further, if c < visible + kSlope: 8 along the diagonal, 0 at the end of all keys.
template <int kKeys, int kSlope>
__device__ __forceinline__ void Mask(float (&s)[kKeys / 2], int visible, int lane) {
#pragma unroll
  for (int i = 0; i < kKeys / 2; ++i) {
    const int key = i / 4 * 8 + (lane % 4) * 2 + (i & 1);
    if (key >= visible + ((i >> 1) & 1) * kSlope) s[i] = -INFINITY;
  }
}

#endif  // EK_HAS_SM90A

}  // namespace evenkeel
