#include "runtime/ops/cuda/column_sum.h"

namespace evenkeel {
namespace {

constexpr int kColumns = 32;
constexpr int kSlices = 32;

// Thread (column, slice) adds the rows slice, slice + kSlices, ... in ascending order; the slices'
// sums are then added in ascending order. In float64: these are few additions, and the terms
// cancel.
__global__ void __launch_bounds__(kColumns* kSlices)
    ColumnSumKernel(const float* partials, int64_t rows, int64_t columns, float* out) {
  __shared__ double sums[kSlices][kColumns];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  double sum = 0.0;
  if (column < columns) {
#pragma unroll 4
    for (int64_t row = threadIdx.y; row < rows; row += kSlices) {
      sum += static_cast<double>(partials[row * columns + column]);
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  for (int slice = 1; slice < kSlices; ++slice) sum += sums[slice][threadIdx.x];
  out[column] = static_cast<float>(static_cast<double>(out[column]) + sum);
}

}  // namespace

cudaError_t LaunchColumnSum(const float* partials, int64_t rows, int64_t columns, float* out,
                            cudaStream_t stream) {
  if (rows <= 0 || columns <= 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((columns + kColumns - 1) / kColumns);
  ColumnSumKernel<<<blocks, dim3(kColumns, kSlices), 0, stream>>>(partials, rows, columns, out);
  return cudaGetLastError();
}

}  // namespace evenkeel
