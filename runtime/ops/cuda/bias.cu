// A block sums a run of rows in a strip of columns: each thread keeps the columns of one piece and
// takes every few rows, then the threads of a piece are added up in shared memory, and the blocks
// by LaunchColumnSum.
#include <algorithm>

#include "runtime/ops/cuda/bias_cuda.h"
#include "runtime/ops/cuda/column_sum.h"
#include "runtime/ops/cuda/row_pieces.cuh"

namespace evenkeel {
namespace {

using namespace row_pieces;  // NOLINT(google-build-using-namespace)

constexpr int kThreads = 256;
constexpr int kStrip = 32;            // threads side by side: 512 bytes of a row
constexpr int kMinRows = 64;          // of a block
constexpr int64_t kBlocks = 4 * 132;  // about; a constant, for the same order on every GPU

// Rows of a block, whatever the width of a thread.
int64_t RowsOf(int64_t tokens, int64_t columns) {
  return std::max<int64_t>(CeilDiv(tokens * CeilDiv(columns, kStrip * kPiece), kBlocks), kMinRows);
}

// blockDim: (units of a strip, rows at a time); blockIdx: (strip, run of rows).
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    BiasBackwardKernel(const BiasBackwardParams p, int64_t rows) {
  using Io = Unit<kWidth>;
  __shared__ float sums[kThreads * kWidth];
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWidth;
  const bool inside = column < p.columns;
  const int64_t begin = blockIdx.y * rows;
  const int64_t end = begin + rows < p.tokens ? begin + rows : p.tokens;
  float sum[kWidth] = {};
  if (inside) {
#pragma unroll 4
    for (int64_t row = begin + threadIdx.y; row < end; row += blockDim.y) {
      float v[kWidth];
      Io::Open(Io::Load(static_cast<const Bf16*>(p.dy) + row * p.dy_stride + column), v);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sum[j] += v[j];
    }
  }
  const auto place = [&](unsigned slice, int j) {
    return (slice * blockDim.x + threadIdx.x) * kWidth + j;
  };
#pragma unroll
  for (int j = 0; j < kWidth; ++j) sums[place(threadIdx.y, j)] = sum[j];
  __syncthreads();
  if (threadIdx.y != 0 || !inside) return;
  for (unsigned slice = 1; slice < blockDim.y; ++slice) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum[j] += sums[place(slice, j)];
  }
  float* partial = static_cast<float*>(p.workspace) + blockIdx.y * p.columns + column;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) partial[j] = sum[j];
}

template <int kWidth>
void Run(const BiasBackwardParams& p, int64_t rows, cudaStream_t stream) {
  const int64_t units = p.columns / kWidth, strip = std::min<int64_t>(units, kStrip);
  const dim3 block(static_cast<unsigned>(strip), static_cast<unsigned>(kThreads / strip));
  const dim3 grid(static_cast<unsigned>(CeilDiv(units, strip)),
                  static_cast<unsigned>(CeilDiv(p.tokens, rows)));
  BiasBackwardKernel<kWidth><<<grid, block, 0, stream>>>(p, rows);
}

}  // namespace

size_t BiasBackwardWorkspaceBytes(int64_t tokens, int64_t columns) {
  if (tokens <= 0 || columns <= 0) return 0;
  return static_cast<size_t>(CeilDiv(tokens, RowsOf(tokens, columns)) * columns) * sizeof(float);
}

cudaError_t LaunchBiasBackward(const BiasBackwardParams& p, cudaStream_t stream) {
  if (p.tokens < 0 || p.columns < 0) return cudaErrorInvalidValue;
  if (p.tokens == 0 || p.columns == 0) return cudaSuccess;
  const int64_t rows = RowsOf(p.tokens, p.columns);
  if (HasPieces(p.dy, p.dy_stride, p.columns)) {
    Run<kPiece>(p, rows, stream);
  } else {
    Run<1>(p, rows, stream);
  }
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  return LaunchColumnSum(static_cast<const float*>(p.workspace), CeilDiv(p.tokens, rows), p.columns,
                         p.dbias, stream);
}

}  // namespace evenkeel
