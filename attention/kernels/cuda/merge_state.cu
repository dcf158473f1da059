// Merge of partial results, bound by memory. A warp takes one row of one head: all its lanes know
// both lse before one of them writes the new one.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "attention/kernels/cuda/merge_state_cuda.h"

namespace evenkeel {
namespace {

constexpr int kThreads = 256;

// kWidth elements, 1 or 4, as float32.
template <int kWidth>
__device__ __forceinline__ void Load(const float* p, float (&x)[kWidth]) {
  if constexpr (kWidth == 4) {
    const float4 v = *reinterpret_cast<const float4*>(p);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  } else {
    x[0] = *p;
  }
}

template <int kWidth>
__device__ __forceinline__ void Load(const __nv_bfloat16* p, float (&x)[kWidth]) {
  if constexpr (kWidth == 4) {
    const uint2 v = *reinterpret_cast<const uint2*>(p);
    x[0] = __uint_as_float(v.x << 16), x[1] = __uint_as_float(v.x & 0xffff0000u);
    x[2] = __uint_as_float(v.y << 16), x[3] = __uint_as_float(v.y & 0xffff0000u);
  } else {
    x[0] = __bfloat162float(*p);
  }
}

template <int kWidth>
__device__ __forceinline__ void Store(float* p, const float (&x)[kWidth]) {
  if constexpr (kWidth == 4) {
    *reinterpret_cast<float4*>(p) = make_float4(x[0], x[1], x[2], x[3]);
  } else {
    *p = x[0];
  }
}

// The row and head of this warp; false past the last.
__device__ __forceinline__ bool FindRow(const MergeStateParams& p, int64_t& row, int64_t& head) {
  const int64_t index = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  row = index / p.heads;
  head = index % p.heads;
  return row < p.rows;
}

template <typename Part, int kWidth>
__global__ void __launch_bounds__(kThreads)
    MergeStateKernel(const __grid_constant__ MergeStateParams p) {
  int64_t row, head;
  if (!FindRow(p, row, head)) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float* const place = p.lse + row * p.lse_strides.row + head * p.lse_strides.head;
  const float lse = *place;
  const float part_lse = p.part_lse[row * p.part_lse_strides.row + head * p.part_lse_strides.head];
  // A side without keys is left out, not multiplied by 0: whatever lies there stays outside.
  if (part_lse == -INFINITY) return;
  const bool copies = lse == -INFINITY;
  // With d = the smaller minus the larger: lse = larger + log1p(exp(d)); the weights are
  // 1 / (1 + exp(d)) and exp(d) / (1 + exp(d)). NaN in either lse reaches all results.
  const bool part_is_larger = part_lse > lse;
  const float larger = part_is_larger ? part_lse : lse;
  const float ratio = expf(part_is_larger ? lse - part_lse : part_lse - lse);
  const float major = 1.0f / (1.0f + ratio), minor = ratio / (1.0f + ratio);
  const float weight = part_is_larger ? minor : major;
  const float part_weight = part_is_larger ? major : minor;
  const Part* part = static_cast<const Part*>(p.part_out) + row * p.part_out_strides.row +
                     head * p.part_out_strides.head;
  float* out = p.out + row * p.out_strides.row + head * p.out_strides.head;
  for (int64_t e = lane * kWidth; e < p.size; e += 32 * kWidth) {
    float x[kWidth];
    Load<kWidth>(part + e, x);
    if (!copies) {
      float y[kWidth];
      Load<kWidth>(out + e, y);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) x[i] = y[i] * weight + x[i] * part_weight;
    }
    Store<kWidth>(out + e, x);
  }
  __syncwarp();  // all lanes have read the old lse
  if (lane == 0) *place = copies ? part_lse : larger + log1pf(ratio);
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    SetIdentityStateKernel(const __grid_constant__ MergeStateParams p) {
  int64_t row, head;
  if (!FindRow(p, row, head)) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float* out = p.out + row * p.out_strides.row + head * p.out_strides.head;
  const float zeros[kWidth] = {};
  for (int64_t e = lane * kWidth; e < p.size; e += 32 * kWidth) Store<kWidth>(out + e, zeros);
  if (lane == 0) p.lse[row * p.lse_strides.row + head * p.lse_strides.head] = -INFINITY;
}

// Whether rows consist of whole, aligned groups of 4 elements of `bytes` each.
bool HasGroups(const void* data, const StateStrides& strides, int64_t size, int bytes) {
  return reinterpret_cast<uintptr_t>(data) % (4 * bytes) == 0 && strides.row % 4 == 0 &&
         strides.head % 4 == 0 && size % 4 == 0;
}

template <typename Kernel>
cudaError_t Launch(Kernel kernel, const MergeStateParams& p, cudaStream_t stream) {
  const int64_t blocks = (p.rows * p.heads + kThreads / 32 - 1) / (kThreads / 32);
  if (p.rows < 0 || p.heads < 0 || p.size < 0 || blocks > INT32_MAX) return cudaErrorInvalidValue;
  if (blocks == 0) return cudaSuccess;
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchMergeState(const MergeStateParams& p, cudaStream_t stream) {
  const bool groups = HasGroups(p.out, p.out_strides, p.size, 4) &&
                      HasGroups(p.part_out, p.part_out_strides, p.size, p.part_is_bf16 ? 2 : 4);
  if (p.part_is_bf16) {
    return groups ? Launch(MergeStateKernel<__nv_bfloat16, 4>, p, stream)
                  : Launch(MergeStateKernel<__nv_bfloat16, 1>, p, stream);
  }
  return groups ? Launch(MergeStateKernel<float, 4>, p, stream)
                : Launch(MergeStateKernel<float, 1>, p, stream);
}

cudaError_t LaunchSetIdentityState(const MergeStateParams& p, cudaStream_t stream) {
  return HasGroups(p.out, p.out_strides, p.size, 4) ? Launch(SetIdentityStateKernel<4>, p, stream)
                                                    : Launch(SetIdentityStateKernel<1>, p, stream);
}

}  // namespace evenkeel
