// Copying ranges of rows on CUDA, with the meaning of runtime/ops/copy_rows.h; sm_80 and later.
// Fast for a few long ranges, for thousands of single rows and for both at once; for rows of
// multiples of 16 bytes, aligned to 16; right for any of multiples of 2.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "runtime/base/row_range.h"

namespace evenkeel {

// Row to + i of y = row from + i of x, for i in [0, count) of every range.
struct CopyRowsParams {
  const void* x = nullptr;
  void* y = nullptr;
  int64_t row_bytes = 0;
  int64_t x_stride = 0;  // bytes between rows
  int64_t y_stride = 0;
  const RowRange* ranges = nullptr;       // [num_ranges], in device memory
  const RowRange* host_ranges = nullptr;  // the same in the host's, read before this returns
  int64_t num_ranges = 0;
};

cudaError_t LaunchCopyRows(const CopyRowsParams& params, cudaStream_t stream);

}  // namespace evenkeel
