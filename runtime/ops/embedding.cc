#include "runtime/ops/embedding.h"

#include <algorithm>

#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/row_loops.h"

namespace evenkeel {

using simd::Vec;

void EmbeddingForward(const OpContext& context, ConstTensorView table, Indices tokens, double scale,
                      TensorView y) {
  EK_TRACE_ON_CUDA(context, EmbeddingForward, table, tokens, scale, y)
  EK_CHECK(y.dim(0) == tokens.size() && y.dim(1) == table.dim(1))
      << tokens.size() << " of " << table.shape.ToString() << " -> " << y.shape.ToString();
  DispatchFloat(y.dtype, [&]<typename T>() {
    const auto weights = row_loops::RowsOf<T>(table);
    const auto out = row_loops::RowsOf<T>(y);
    const T factor = static_cast<T>(scale);
    context.pool.ParallelFor(
        out.count, row_loops::RowGrain(out.columns), [&](int64_t begin, int64_t end) {
          for (int64_t t = begin; t < end; ++t) {
            if (tokens[t] == kNoToken) {
              std::fill(out[t], out[t] + out.columns, T{0});
              continue;
            }
            row_loops::Map<T>(
                out.columns, out[t], [factor](Vec<T> v) { return v * factor; }, weights[tokens[t]]);
          }
        });
  });
}

void EmbeddingBackward(const OpContext& context, Indices tokens, double scale, ConstTensorView dy,
                       TensorView dtable) {
  EK_TRACE_ON_CUDA(context, EmbeddingBackward, tokens, scale, dy, dtable)
  EK_CHECK(dy.dim(0) == tokens.size() && dy.dim(1) == dtable.dim(1))
      << tokens.size() << " of " << dy.shape.ToString() << " -> " << dtable.shape.ToString();
  DispatchFloat(dy.dtype, [&]<typename T>() {
    const auto d = row_loops::RowsOf<T>(dy);
    const auto gradient = row_loops::RowsOf<T>(dtable);
    const T factor = static_cast<T>(scale);
    // Each thread adds every token's share of its own columns: a token that occurs often needs no
    // lock, and the order of the sums is that of the tokens. A grain is a cache line or two.
    constexpr int64_t kGrain = 32;
    context.pool.ParallelFor(d.columns, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t t = 0; t < d.count; ++t) {
        if (tokens[t] == kNoToken) continue;
        T* out = gradient[tokens[t]] + begin;
        row_loops::Map<T>(
            end - begin, out, [factor](Vec<T> v, Vec<T> w) { return v + w * factor; }, out,
            d[t] + begin);
      }
    });
  });
}

}  // namespace evenkeel
