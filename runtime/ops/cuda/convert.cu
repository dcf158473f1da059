#include <cuda_bf16.h>

#include <algorithm>

#include "runtime/ops/cuda/convert_cuda.h"

namespace evenkeel {
namespace {

constexpr int kThreads = 256;

template <typename To, typename From>
__global__ void __launch_bounds__(kThreads) ConvertKernel(const From* x, To* y, int64_t n) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += step) {
    y[i] = static_cast<To>(x[i]);
  }
}

template <typename To, typename From>
cudaError_t Launch(const From* x, To* y, int64_t n, cudaStream_t stream) {
  if (n < 0) return cudaErrorInvalidValue;
  if (n == 0) return cudaSuccess;
  constexpr int64_t kMaxBlocks = 4096;
  const int64_t blocks = std::min((n + kThreads - 1) / kThreads, kMaxBlocks);
  ConvertKernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(x, y, n);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchFloatToBf16(const float* x, void* y, int64_t n, cudaStream_t stream) {
  return Launch(x, static_cast<__nv_bfloat16*>(y), n, stream);
}

cudaError_t LaunchBf16ToFloat(const void* x, float* y, int64_t n, cudaStream_t stream) {
  return Launch(static_cast<const __nv_bfloat16*>(x), y, n, stream);
}

}  // namespace evenkeel
