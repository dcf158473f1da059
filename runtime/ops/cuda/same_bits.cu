#include <algorithm>

#include "runtime/ops/cuda/same_bits.h"

namespace evenkeel {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    FindDifferenceKernel(const uint16_t* a, const uint16_t* b, int64_t rows, int64_t row_words,
                         int64_t stride_words, int32_t* differs) {
  bool found = false;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int64_t begin = row * stride_words;
    for (int64_t i = threadIdx.x; i < row_words; i += kThreads) {
      found |= a[begin + i] != b[begin + i];
    }
  }
  if (found) *differs = 1;  // whoever writes, writes the same
}

}  // namespace

cudaError_t LaunchFindDifference(const void* a, const void* b, int64_t rows, int64_t row_words,
                                 int64_t stride_words, int32_t* differs, cudaStream_t stream) {
  if (rows <= 0 || row_words <= 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(rows, 4096));
  FindDifferenceKernel<<<blocks, kThreads, 0, stream>>>(static_cast<const uint16_t*>(a),
                                                        static_cast<const uint16_t*>(b), rows,
                                                        row_words, stride_words, differs);
  return cudaGetLastError();
}

}  // namespace evenkeel
