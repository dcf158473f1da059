// The second stage of sums over rows: float32 partial sums of blocks, added up in a fixed order.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace evenkeel {

// Enqueues out [columns] += sum over `rows` of partials [rows, columns].
cudaError_t LaunchColumnSum(const float* partials, int64_t rows, int64_t columns, float* out,
                            cudaStream_t stream);

}  // namespace evenkeel
