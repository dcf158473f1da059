// Adding up rows that came from several places: gradients of keys and values that several ranks
// computed, each in its own range of the rows received.
#pragma once

#include "runtime/base/row_segment.h"
#include "runtime/ops/mirrored_array.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Mirror them once where several calls use them.
using RowSegments = MirroredArray<RowSegment>;

// Row to + i of y = sum of row terms[t] + i of x over t in [first_term, first_term + num_terms), in
// that order, for i in [0, count) of every segment; zero where there is no term. x [R, C] and
// y [T, C] are of the context's dtype or of its wide dtype, each by itself; rows may be strided.
// Sums are in the wide dtype, rounded once. Segments may be empty and do not overlap in y, y is not
// x, and terms may be used any number of times. Rows of y that no segment names stay as they are.
void SumRowRanges(const OpContext& context, const RowSegments& segments, const Positions& terms,
                  ConstTensorView x, TensorView y);

}  // namespace evenkeel
