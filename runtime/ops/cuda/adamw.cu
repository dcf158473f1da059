#include <cmath>

#include "runtime/ops/cuda/adamw_cuda.h"
#include "runtime/ops/cuda/row_pieces.cuh"

namespace evenkeel {
namespace {

using row_pieces::PackPair;

constexpr int kThreads = 256;
constexpr int kWide = 4;  // elements a load
constexpr int kPerThread = 2;
constexpr int kPerBlock = kThreads * kWide * kPerThread;

// The scalars of one step, rounded once.
struct StepScalars {
  float beta1, one_minus_beta1, beta2, one_minus_beta2;
  float step_size;                 // lr / (1 - beta1^step)
  float inverse_sqrt_correction2;  // 1 / sqrt(1 - beta2^step)
  float eps;
};

// The last range that begins at or before element i.
__device__ __forceinline__ int64_t RangeOf(const AdamWParams& p, int64_t i) {
  int64_t low = 0, high = p.num_ranges;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (p.ranges[middle].begin <= i) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

__device__ __forceinline__ float DecayOf(const AdamWParams& p, int64_t range) {
  return static_cast<float>(1.0 - p.lr * p.ranges[range].weight_decay);
}

__device__ __forceinline__ void Update(const StepScalars& s, float decay, float g, float& w,
                                       float& m, float& v) {
  m = s.beta1 * m + s.one_minus_beta1 * g;
  v = s.beta2 * v + s.one_minus_beta2 * g * g;
  const float denominator = sqrtf(v) * s.inverse_sqrt_correction2 + s.eps;
  w = w * decay - s.step_size * m / denominator;
}

__device__ __forceinline__ void UpdateOne(const AdamWParams& p, const StepScalars& s, float scale,
                                          int64_t i) {
  float w = p.weight[i], m = p.exp_avg[i], v = p.exp_avg_sq[i];
  Update(s, DecayOf(p, RangeOf(p, i)), p.gradient[i] * scale, w, m, v);
  p.weight[i] = w;
  p.exp_avg[i] = m;
  p.exp_avg_sq[i] = v;
  if (p.copy != nullptr) static_cast<__nv_bfloat16*>(p.copy)[i] = __float2bfloat16(w);
  if (p.clear_gradient) p.gradient[i] = 0.0f;
}

__global__ void __launch_bounds__(kThreads)
    AdamWKernel(const AdamWParams p, const StepScalars s, bool aligned) {
  const float scale = p.gradient_scale != nullptr ? *p.gradient_scale : 1.0f;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPerBlock;
  const int64_t end = begin + kPerBlock < p.n ? begin + kPerBlock : p.n;
  if (!(scale >= 0.0f)) {
    if (p.clear_gradient) {
      for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) p.gradient[i] = 0.0f;
    }
    return;
  }
  const int64_t range = RangeOf(p, begin);
  const bool one_range = range + 1 == p.num_ranges || p.ranges[range + 1].begin >= end;
  if (!aligned || !one_range || end - begin < kPerBlock) {
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) UpdateOne(p, s, scale, i);
    return;
  }
  const float decay = DecayOf(p, range);
  float4 g[kPerThread], w[kPerThread], m[kPerThread], v[kPerThread];
  const int64_t first = begin / kWide + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t at = first + i * kThreads;
    g[i] = reinterpret_cast<const float4*>(p.gradient)[at];
    w[i] = reinterpret_cast<const float4*>(p.weight)[at];
    m[i] = reinterpret_cast<const float4*>(p.exp_avg)[at];
    v[i] = reinterpret_cast<const float4*>(p.exp_avg_sq)[at];
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t at = first + i * kThreads;
    Update(s, decay, g[i].x * scale, w[i].x, m[i].x, v[i].x);
    Update(s, decay, g[i].y * scale, w[i].y, m[i].y, v[i].y);
    Update(s, decay, g[i].z * scale, w[i].z, m[i].z, v[i].z);
    Update(s, decay, g[i].w * scale, w[i].w, m[i].w, v[i].w);
    reinterpret_cast<float4*>(p.weight)[at] = w[i];
    reinterpret_cast<float4*>(p.exp_avg)[at] = m[i];
    reinterpret_cast<float4*>(p.exp_avg_sq)[at] = v[i];
    if (p.copy != nullptr) {
      reinterpret_cast<uint2*>(p.copy)[at] =
          make_uint2(PackPair(w[i].x, w[i].y), PackPair(w[i].z, w[i].w));
    }
    if (p.clear_gradient) {
      reinterpret_cast<float4*>(p.gradient)[at] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
  }
}

bool IsAligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

}  // namespace

cudaError_t LaunchAdamW(const AdamWParams& p, cudaStream_t stream) {
  const int64_t blocks = row_pieces::CeilDiv(p.n, kPerBlock);
  if (p.n < 0 || p.step < 1 || p.num_ranges < 1 || blocks > int64_t{1} << 30) {
    return cudaErrorInvalidValue;
  }
  if (p.n == 0) return cudaSuccess;
  const auto step = static_cast<double>(p.step);
  StepScalars s;
  s.beta1 = static_cast<float>(p.beta1);
  s.one_minus_beta1 = static_cast<float>(1 - p.beta1);
  s.beta2 = static_cast<float>(p.beta2);
  s.one_minus_beta2 = static_cast<float>(1 - p.beta2);
  s.step_size = static_cast<float>(p.lr / (1 - std::pow(p.beta1, step)));
  s.inverse_sqrt_correction2 = static_cast<float>(1 / std::sqrt(1 - std::pow(p.beta2, step)));
  s.eps = static_cast<float>(p.eps);
  const bool aligned = IsAligned(p.weight) && IsAligned(p.exp_avg) && IsAligned(p.exp_avg_sq) &&
                       IsAligned(p.gradient) && IsAligned(p.copy);
  AdamWKernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p, s, aligned);
  return cudaGetLastError();
}

}  // namespace evenkeel
