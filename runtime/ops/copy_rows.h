// Copying many ranges of rows at once: gathering the tokens that go to other ranks, and laying down
// those that came.
#pragma once

#include "runtime/base/row_range.h"
#include "runtime/ops/mirrored_array.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Mirror them once where several calls use them.
using RowRanges = MirroredArray<RowRange>;

// Row to + i of y = row from + i of x, for i in [0, count) of every range. x [T, C], y [U, C], of
// one dtype, any; rows may be strided. Ranges may be empty and do not overlap in y, and y is not x.
// Rows of y that no range names stay as they are.
void CopyRowRanges(const OpContext& context, const RowRanges& ranges, ConstTensorView x,
                   TensorView y);

}  // namespace evenkeel
