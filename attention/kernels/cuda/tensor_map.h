// Maps for Hopper's bulk tensor copies.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace evenkeel {

// Describes bf16 data [rows, heads, dim], rows `stride` elements apart, in boxes of [box_rows, 1,
// 64] swizzled by 128 bytes. Takes about a microsecond.
cudaError_t EncodeTensorMap(CUtensorMap* map, const void* data, int64_t rows, int heads, int dim,
                            int64_t stride, int box_rows);

}  // namespace evenkeel
