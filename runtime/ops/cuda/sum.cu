#include <algorithm>

#include "runtime/ops/cuda/row_pieces.cuh"
#include "runtime/ops/cuda/sum_cuda.h"

namespace evenkeel {
namespace {

constexpr int kThreads = 256;
constexpr int kPerBlock = 32768;  // elements; their sums are float32 for 8 terms, then float64
constexpr int kLastThreads = 1024;

template <bool kSquares>
__device__ __forceinline__ float Term(float x) {
  return kSquares ? x * x : x;
}

template <int kWarps>
__device__ __forceinline__ double BlockSum(double v) {
  __shared__ double scratch[kWarps];
  return row_pieces::TeamSum<kWarps>(v, scratch);
}

template <bool kSquares, bool kAligned>
__global__ void __launch_bounds__(kThreads) PartialSumKernel(const SumParams p) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPerBlock;
  const auto n = static_cast<int>(p.n - begin < kPerBlock ? p.n - begin : kPerBlock);
  const float* x = p.x + begin;
  double sum = 0.0;
  constexpr int kWide = kAligned ? 8 : 1;
  const int wide = n / kWide * kWide;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x) * kWide; i < wide; i += kThreads * kWide) {
    if constexpr (kAligned) {
      float v[8];
      row_pieces::LoadFloats(x + i, v);
#pragma unroll
      for (int j = 0; j < 8; ++j) v[j] = Term<kSquares>(v[j]);
      sum += static_cast<double>(((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])));
    } else {
      sum += static_cast<double>(Term<kSquares>(x[i]));
    }
  }
  for (int i = wide + static_cast<int>(threadIdx.x); i < n; i += kThreads) {
    sum += static_cast<double>(Term<kSquares>(x[i]));
  }
  sum = BlockSum<kThreads / 32>(sum);
  if (threadIdx.x == 0) static_cast<double*>(p.workspace)[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kLastThreads) LastSumKernel(const SumParams p, int64_t partials) {
  double sum = 0.0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < partials; i += kLastThreads) {
    sum += static_cast<const double*>(p.workspace)[i];
  }
  sum = BlockSum<kLastThreads / 32>(sum);
  if (threadIdx.x == 0) *p.sum = p.accumulate ? *p.sum + sum : sum;
}

__global__ void ClipFactorKernel(const ClipFactorParams p) {
  const double norm = sqrt(*p.sum_of_squares);
  *p.norm = norm;
  if (!isfinite(norm)) {
    *p.factor = -1.0f;
  } else {
    *p.factor =
        p.max_norm > 0.0 && norm > p.max_norm ? static_cast<float>(p.max_norm / norm) : 1.0f;
  }
}

template <bool kSquares>
void RunPartial(const SumParams& p, int64_t blocks, cudaStream_t stream) {
  const auto grid = static_cast<unsigned>(blocks);
  if (reinterpret_cast<uintptr_t>(p.x) % 16 == 0) {
    PartialSumKernel<kSquares, true><<<grid, kThreads, 0, stream>>>(p);
  } else {
    PartialSumKernel<kSquares, false><<<grid, kThreads, 0, stream>>>(p);
  }
}

}  // namespace

size_t SumWorkspaceBytes(int64_t n) {
  return static_cast<size_t>(row_pieces::CeilDiv(n, kPerBlock)) * sizeof(double);
}

cudaError_t LaunchSum(const SumParams& p, cudaStream_t stream) {
  const int64_t blocks = row_pieces::CeilDiv(p.n, kPerBlock);
  if (p.n < 0 || blocks > int64_t{1} << 30) return cudaErrorInvalidValue;
  if (blocks > 0) {
    if (p.squares) {
      RunPartial<true>(p, blocks, stream);
    } else {
      RunPartial<false>(p, blocks, stream);
    }
  }
  LastSumKernel<<<1, kLastThreads, 0, stream>>>(p, blocks);
  return cudaGetLastError();
}

cudaError_t LaunchClipFactor(const ClipFactorParams& params, cudaStream_t stream) {
  ClipFactorKernel<<<1, 1, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace evenkeel
