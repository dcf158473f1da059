// Whether two matrices on the device hold the same bits.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace evenkeel {

// Enqueues *differs = 1 if any of the first `row_words` 2-byte words of any of `rows` rows differ,
// else leaves it. Rows are `stride_words` apart in both.
cudaError_t LaunchFindDifference(const void* a, const void* b, int64_t rows, int64_t row_words,
                                 int64_t stride_words, int32_t* differs, cudaStream_t stream);

}  // namespace evenkeel
