#include "runtime/ops/cross_entropy_slices.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/row_loops.h"
#include "runtime/ops/softmax_rows.h"

namespace evenkeel {
namespace {

using simd::Vec;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// A row of [T, 3], as it travels between ranks.
struct SliceStatistics {
  double max;
  double sum;
  double target_logit;
};

template <typename T>
SliceStatistics StatisticsOf(const T* z, int64_t n, int64_t target) {
  SliceStatistics row = {-kInfinity, 0, 0};
  const T max = softmax_rows::MaxOrNan(z, n);
  row.max = static_cast<double>(max);
  // Nothing but -inf is a slice without probability; NaN and +inf have no softmax.
  if (std::isfinite(max)) {
    row.sum = static_cast<double>(softmax_rows::ExpSum<T>(z, max, n, nullptr));
  } else if (row.max != -kInfinity) {
    row.sum = kNan;
  }
  if (0 <= target && target < n) row.target_logit = static_cast<double>(z[target]);
  return row;
}

// Token t's statistics over the whole vocabulary. Where softmax has no value, for a NaN, +inf or
// nothing but -inf, the sum is NaN, and so is all that is made of it.
SliceStatistics Combined(const SliceStatistics* all, int64_t slices, int64_t tokens, int64_t t) {
  double max = -kInfinity;
  for (int64_t p = 0; p < slices; ++p) max = std::max(max, all[p * tokens + t].max);
  SliceStatistics row = {max, std::isfinite(max) ? 0 : kNan, 0};
  for (int64_t p = 0; p < slices; ++p) {
    const SliceStatistics& slice = all[p * tokens + t];
    row.sum += slice.sum * std::exp(slice.max - max);
    row.target_logit += slice.target_logit;
  }
  return row;
}

template <typename T>
void GradientRow(const SliceStatistics& row, double scale, int64_t n, int64_t target, T* z) {
  const T max = static_cast<T>(row.max), factor = static_cast<T>(scale / row.sum);
  row_loops::Map<T>(
      n, z, [max, factor](Vec<T> v) { return simd::Exp<T>(v - max) * factor; }, z);
  if (0 <= target && target < n) z[target] -= static_cast<T>(scale);
}

}  // namespace

void CrossEntropySliceStatistics(const OpContext& context, ConstTensorView logits, Indices targets,
                                 int64_t vocab_begin, TensorView statistics) {
  EK_TRACE_ON_CUDA(context, CrossEntropySliceStatistics, logits, targets, vocab_begin, statistics)
  EK_CHECK(logits.dim(0) == targets.size() && statistics.is_dense() &&
           statistics.num_elements() == 3 * targets.size())
      << logits.shape.ToString() << " " << targets.size() << " " << statistics.shape.ToString();
  auto* out = reinterpret_cast<SliceStatistics*>(statistics.as<double>());
  DispatchFloat(logits.dtype, [&]<typename T>() {
    const auto rows = row_loops::RowsOf<T>(logits);
    context.pool.ParallelForEach(rows.count, [&](int64_t t) {
      // kIgnoredTarget, being negative, is in no slice.
      out[t] = StatisticsOf<T>(rows[t], rows.columns, targets[t] - vocab_begin);
    });
  });
}

void CrossEntropySliceGradient(const OpContext& context, ConstTensorView all, Indices targets,
                               int64_t vocab_begin, double scale, TensorView logits,
                               TensorView losses) {
  EK_TRACE_ON_CUDA(context, CrossEntropySliceGradient, all, targets, vocab_begin, scale, logits,
                   losses)
  const int64_t tokens = targets.size();
  EK_CHECK(all.rank() == 3 && all.is_dense() && all.dim(1) == tokens && all.dim(2) == 3 &&
           losses.num_elements() == tokens && (logits.empty() || logits.dim(0) == tokens))
      << all.shape.ToString() << " " << tokens << " " << logits.shape.ToString() << " "
      << losses.shape.ToString();
  const auto* slices = reinterpret_cast<const SliceStatistics*>(all.as<double>());
  double* loss = losses.as<double>();
  DispatchFloat(logits.dtype, [&]<typename T>() {
    row_loops::Rows<T> rows;
    if (!logits.empty()) rows = row_loops::RowsOf<T>(logits);
    context.pool.ParallelForEach(tokens, [&](int64_t t) {
      T* z = rows.columns > 0 ? rows[t] : nullptr;
      if (targets[t] == kIgnoredTarget) {
        std::fill(z, z + rows.columns, T{0});
        loss[t] = 0;
        return;
      }
      const SliceStatistics row = Combined(slices, all.dim(0), tokens, t);
      loss[t] = row.max - row.target_logit + std::log(row.sum);
      GradientRow<T>(row, scale, rows.columns, targets[t] - vocab_begin, z);
    });
  });
}

}  // namespace evenkeel
