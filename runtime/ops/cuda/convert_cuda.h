// Changing the dtype of a flat tensor on CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace evenkeel {

// Enqueues y [n] (bf16) = x [n] (float32), rounded to nearest even.
cudaError_t LaunchFloatToBf16(const float* x, void* y, int64_t n, cudaStream_t stream);

// Enqueues y [n] (float32) = x [n] (bf16), exactly.
cudaError_t LaunchBf16ToFloat(const void* x, float* y, int64_t n, cudaStream_t stream);

}  // namespace evenkeel
