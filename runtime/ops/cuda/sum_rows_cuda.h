// Sums of ranges of rows on CUDA, with the meaning of runtime/ops/sum_rows.h; sm_80 and later. Fast
// for a few long segments, for thousands of single rows and for both at once, where rows are
// aligned to 16 bytes and consist of whole units of 16; right for any.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "runtime/base/row_segment.h"

namespace evenkeel {

// Row to + i of y = sum over the segment's terms, in order, of row terms[t] + i of x, in float32.
struct SumRowsParams {
  bool float_x = false;  // float32 rather than bf16
  bool float_y = false;
  const void* x = nullptr;
  void* y = nullptr;
  int64_t columns = 0;
  int64_t x_stride = 0;  // elements between rows
  int64_t y_stride = 0;
  const RowSegment* segments = nullptr;       // [num_segments], in device memory
  const RowSegment* host_segments = nullptr;  // the same in the host's, read before this returns
  int64_t num_segments = 0;
  const int64_t* terms = nullptr;  // in device memory; may be null if no segment has a term
};

cudaError_t LaunchSumRows(const SumRowsParams& params, cudaStream_t stream);

}  // namespace evenkeel
