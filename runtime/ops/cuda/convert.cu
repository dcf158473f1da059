#include <cuda_bf16.h>

#include <algorithm>

#include "runtime/ops/cuda/convert_cuda.h"

namespace evenkeel {
namespace {

constexpr int kThreads = 256;

template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Piece {
  T values[kSize];
};

// Each thread converts pieces of kSize neighbours, read and written at once.
template <typename From, typename To, int kSize>
__global__ void __launch_bounds__(kThreads) ConvertKernel(ConvertParams p, int64_t pieces) {
  const auto* x = static_cast<const From*>(p.x);
  auto* y = static_cast<To*>(p.y);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, n = p.rows * pieces;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += step) {
    const int64_t row = i / pieces, column = (i - row * pieces) * kSize;
    const auto from = *reinterpret_cast<const Piece<From, kSize>*>(x + row * p.x_stride + column);
    Piece<To, kSize> to;
#pragma unroll
    for (int j = 0; j < kSize; ++j) to.values[j] = static_cast<To>(from.values[j]);
    *reinterpret_cast<Piece<To, kSize>*>(y + row * p.y_stride + column) = to;
  }
}

template <typename From, typename To, int kSize>
cudaError_t Run(const ConvertParams& p, cudaStream_t stream) {
  constexpr int64_t kMaxBlocks = 4096;
  const int64_t pieces = p.columns / kSize;
  const int64_t blocks = std::min((p.rows * pieces + kThreads - 1) / kThreads, kMaxBlocks);
  ConvertKernel<From, To, kSize><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p, pieces);
  return cudaGetLastError();
}

template <typename From, typename To>
cudaError_t Launch(const ConvertParams& p, cudaStream_t stream) {
  if (p.rows < 0 || p.columns < 0) return cudaErrorInvalidValue;
  if (p.rows == 0 || p.columns == 0) return cudaSuccess;
  constexpr int kSize = 4;
  const auto fits = [](const void* data, int64_t stride, size_t size) {
    return reinterpret_cast<uintptr_t>(data) % (kSize * size) == 0 && stride % kSize == 0;
  };
  if (p.columns % kSize == 0 && fits(p.x, p.x_stride, sizeof(From)) &&
      fits(p.y, p.y_stride, sizeof(To))) {
    return Run<From, To, kSize>(p, stream);
  }
  return Run<From, To, 1>(p, stream);
}

}  // namespace

cudaError_t LaunchFloatToBf16(const ConvertParams& params, cudaStream_t stream) {
  return Launch<float, __nv_bfloat16>(params, stream);
}

cudaError_t LaunchBf16ToFloat(const ConvertParams& params, cudaStream_t stream) {
  return Launch<__nv_bfloat16, float>(params, stream);
}

}  // namespace evenkeel
