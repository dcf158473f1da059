#include "runtime/ops/cuda/copy_rows_cuda.h"
#include "runtime/ops/cuda/cuda_op_context.h"
#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/cuda/sum_rows_cuda.h"

namespace evenkeel::cuda {

void CopyRowRanges(const OpContext& context, const RowRanges& ranges, ConstTensorView x,
                   TensorView y) {
  const ArenaScope scope(context.arena);
  const int64_t element = SizeOf(x.dtype);
  CopyRowsParams params;
  params.x = x.data;
  params.y = y.data;
  params.row_bytes = x.dim(1) * element;
  params.x_stride = x.stride(0) * element;
  params.y_stride = y.stride(0) * element;
  params.ranges = cuda::Mirror(context, ranges).device;
  params.host_ranges = ranges.host.data();
  params.num_ranges = ranges.size();
  Note(context, LaunchCopyRows(params, StreamOf(context)), "CopyRowRanges");
}

void SumRowRanges(const OpContext& context, const RowSegments& segments, const Positions& terms,
                  ConstTensorView x, TensorView y) {
  const ArenaScope scope(context.arena);
  SumRowsParams params;
  params.float_x = x.dtype == DType::kF32;
  params.float_y = y.dtype == DType::kF32;
  params.x = x.data;
  params.y = y.data;
  params.columns = x.dim(1);
  params.x_stride = x.stride(0);
  params.y_stride = y.stride(0);
  params.segments = cuda::Mirror(context, segments).device;
  params.host_segments = segments.host.data();
  params.num_segments = segments.size();
  params.terms = cuda::Mirror(context, terms).device;
  Note(context, LaunchSumRows(params, StreamOf(context)), "SumRowRanges");
}

}  // namespace evenkeel::cuda
