#include "runtime/ops/mirrored_array.h"

#include "runtime/base/row_range.h"
#include "runtime/base/row_segment.h"
#include "runtime/ops/cuda/cuda_ops.h"

namespace evenkeel {

template <typename T>
MirroredArray<T> Mirror(const OpContext& context, MirroredArray<T> array) {
  EK_PASS_ON_TO_CUDA(context, Mirror(context, array))
  return array;
}

template Indices Mirror(const OpContext& context, Indices array);
template Positions Mirror(const OpContext& context, Positions array);
template MirroredArray<RowRange> Mirror(const OpContext& context, MirroredArray<RowRange> array);
template MirroredArray<RowSegment> Mirror(const OpContext& context,
                                          MirroredArray<RowSegment> array);

}  // namespace evenkeel
