// How much a call between ranks moves, in words for reports and in bytes and rows for the library.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "runtime/tensor/tensor_view.h"

namespace evenkeel {

// "f32", "bf16", "i64".
const char* NameOf(DType dtype);

// "1024 x f32".
std::string DescribeSize(ConstTensorView view);

int64_t BytesOf(ConstTensorView view);

// Elements and bytes of one row (index of the first dimension) of a dense tensor of rank >= 1; also
// if it has no rows.
int64_t RowElements(ConstTensorView view);
int64_t RowBytes(ConstTensorView view);

// Returns where the rows of each rank begin when they lie in rank order, and at the end the total:
// one entry more than `rows`, which must not be negative.
std::vector<int64_t> RowOffsets(absl::Span<const int64_t> rows);

}  // namespace evenkeel
