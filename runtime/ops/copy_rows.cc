#include "runtime/ops/copy_rows.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/row_loops.h"

namespace evenkeel {
namespace {

// Rows of bytes, whatever the dtype.
struct ByteRows {
  size_t stride;
  size_t width;
};

ByteRows BytesOf(const ConstTensorView& view) {
  const auto element = static_cast<size_t>(SizeOf(view.dtype));
  return {static_cast<size_t>(view.stride(0)) * element,
          static_cast<size_t>(view.dim(1)) * element};
}

void CopyRows(const char* x, const ByteRows& from, char* y, const ByteRows& to, int64_t count) {
  if (from.stride == from.width && to.stride == to.width) {
    std::memcpy(y, x, static_cast<size_t>(count) * to.width);
    return;
  }
  for (int64_t i = 0; i < count; ++i, x += from.stride, y += to.stride) {
    std::memcpy(y, x, to.width);
  }
}

}  // namespace

void CopyRowRanges(const OpContext& context, const RowRanges& ranges, ConstTensorView x,
                   TensorView y) {
  EK_CHECK(x.rank() == 2 && y.rank() == 2 && x.dim(1) == y.dim(1) && x.dtype == y.dtype)
      << x.shape.ToString() << " -> " << y.shape.ToString();
  for (const RowRange& range : ranges.host) {
    EK_CHECK(range.count >= 0 && range.from >= 0 && range.from + range.count <= x.dim(0) &&
             range.to >= 0 && range.to + range.count <= y.dim(0))
        << range.count << " rows from " << range.from << " of " << x.shape.ToString() << " to "
        << range.to << " of " << y.shape.ToString();
  }
  EK_TRACE_ON_CUDA(context, CopyRowRanges, ranges, x, y)
  // ends[i]: rows of ranges 0 to i together, so that threads take equal shares of the rows.
  std::vector<int64_t> ends;
  ends.reserve(ranges.host.size());
  int64_t rows = 0;
  for (const RowRange& range : ranges.host) ends.push_back(rows += range.count);
  if (rows == 0 || x.dim(1) == 0) return;
  const ByteRows from = BytesOf(x), to = BytesOf(y);
  context.pool.ParallelFor(rows, row_loops::RowGrain(x.dim(1)), [&](int64_t begin, int64_t end) {
    auto i = static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin());
    while (begin < end) {
      const RowRange& range = ranges.host[i];
      const int64_t skipped = begin - (ends[i] - range.count);
      const int64_t count = std::min(end, ends[i]) - begin;
      CopyRows(static_cast<const char*>(x.data) +
                   static_cast<size_t>(range.from + skipped) * from.stride,
               from,
               static_cast<char*>(y.data) + static_cast<size_t>(range.to + skipped) * to.stride, to,
               count);
      begin += count;
      ++i;
    }
  });
}

}  // namespace evenkeel
