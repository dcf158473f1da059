#include "runtime/ops/sum_rows.h"

#include <algorithm>
#include <vector>

#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/row_loops.h"

namespace evenkeel {
namespace {

using row_loops::LoadUpTo;
using row_loops::StoreUpTo;
using simd::Vec;

// y[j] = sum of x[(terms[t] + row) * stride + j] for j in [0, columns): four vectors at a time,
// which stay in registers over the terms.
template <typename T>
void SumRow(absl::Span<const int64_t> terms, const T* x, int64_t stride, int64_t row,
            int64_t columns, T* y) {
  constexpr int64_t kLanes = simd::kLanes<T>, kStep = 4 * kLanes;
  if (terms.empty()) {
    std::fill(y, y + columns, T{0});
    return;
  }
  const auto row_of = [&](int64_t term) { return x + (term + row) * stride; };
  int64_t j = 0;
  for (; j + kStep <= columns; j += kStep) {
    Vec<T> sums[4];
    const T* first = row_of(terms[0]) + j;
    for (int64_t v = 0; v < 4; ++v) sums[v] = simd::Load(first + v * kLanes);
    for (const int64_t term : terms.subspan(1)) {
      const T* next = row_of(term) + j;
      for (int64_t v = 0; v < 4; ++v) sums[v] += simd::Load(next + v * kLanes);
    }
    for (int64_t v = 0; v < 4; ++v) simd::Store(y + j + v * kLanes, sums[v]);
  }
  for (; j < columns; j += kLanes) {
    Vec<T> sum = LoadUpTo(row_of(terms[0]) + j, columns - j);
    for (const int64_t term : terms.subspan(1)) sum += LoadUpTo(row_of(term) + j, columns - j);
    StoreUpTo(y + j, sum, columns - j);
  }
}

void CheckRows(const RowSegments& segments, const Positions& terms, const ConstTensorView& x,
               const TensorView& y) {
  for (const RowSegment& s : segments.host) {
    EK_CHECK(s.count >= 0 && s.to >= 0 && s.to + s.count <= y.dim(0))
        << s.count << " rows to " << s.to << " of " << y.shape.ToString();
    EK_CHECK(s.num_terms >= 0 && s.first_term >= 0 && s.first_term + s.num_terms <= terms.size())
        << s.num_terms << " terms from " << s.first_term << " of " << terms.size();
    for (int64_t t = s.first_term; t < s.first_term + s.num_terms; ++t) {
      EK_CHECK(terms[t] >= 0 && terms[t] + s.count <= x.dim(0))
          << s.count << " rows from " << terms[t] << " of " << x.shape.ToString();
    }
  }
}

}  // namespace

void SumRowRanges(const OpContext& context, const RowSegments& segments, const Positions& terms,
                  ConstTensorView x, TensorView y) {
  EK_CHECK(x.rank() == 2 && y.rank() == 2 && x.dim(1) == y.dim(1))
      << x.shape.ToString() << " -> " << y.shape.ToString();
  for (const DType dtype : {x.dtype, y.dtype}) {
    EK_CHECK(dtype == context.dtype || dtype == context.wide_dtype())
        << x.shape.ToString() << " -> " << y.shape.ToString() << ": dtype of neither the context's";
  }
  CheckRows(segments, terms, x, y);
  EK_TRACE_ON_CUDA(context, SumRowRanges, segments, terms, x, y)
  // ends[i]: rows of segments 0 to i times their terms, so that threads take equal shares of the
  // rows that are read and written, to within a row.
  const auto cost_of = [](const RowSegment& s) { return s.num_terms + 1; };
  std::vector<int64_t> ends;
  ends.reserve(segments.host.size());
  int64_t cost = 0;
  for (const RowSegment& s : segments.host) ends.push_back(cost += s.count * cost_of(s));
  if (cost == 0 || x.dim(1) == 0) return;
  DispatchFloat(y.dtype, [&]<typename T>() {
    const T* from = x.as<T>();
    T* to = y.as<T>();
    context.pool.ParallelFor(
        cost, 2 * row_loops::RowGrain(x.dim(1)), [&](int64_t begin, int64_t end) {
          auto i = std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin();
          for (; begin < end; begin = ends[static_cast<size_t>(i++)]) {
            const RowSegment& s = segments.host[static_cast<size_t>(i)];
            const int64_t each = cost_of(s), start = ends[static_cast<size_t>(i)] - s.count * each;
            // A row belongs to the thread in whose share it starts.
            const int64_t last = std::min(s.count, (end - start + each - 1) / each);
            const auto list = terms.host.subspan(static_cast<size_t>(s.first_term),
                                                 static_cast<size_t>(s.num_terms));
            for (int64_t row = (begin - start + each - 1) / each; row < last; ++row) {
              SumRow<T>(list, from, x.stride(0), row, x.dim(1), to + (s.to + row) * y.stride(0));
            }
          }
        });
  });
}

}  // namespace evenkeel
