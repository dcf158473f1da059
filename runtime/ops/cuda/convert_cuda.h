// Changing the dtype of a tensor on CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace evenkeel {

// x and y are [rows, columns], their rows so many elements apart.
struct ConvertParams {
  const void* x = nullptr;
  void* y = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t x_stride = 0;
  int64_t y_stride = 0;
};

// Enqueues y (bf16) = x (float32), rounded to nearest even.
cudaError_t LaunchFloatToBf16(const ConvertParams& params, cudaStream_t stream);

// Enqueues y (float32) = x (bf16), exactly.
cudaError_t LaunchBf16ToFloat(const ConvertParams& params, cudaStream_t stream);

}  // namespace evenkeel
