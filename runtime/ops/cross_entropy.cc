#include "runtime/ops/cross_entropy.h"

#include <cmath>
#include <limits>

#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/row_loops.h"
#include "runtime/ops/softmax_rows.h"

namespace evenkeel {
namespace {

using simd::Vec;
using softmax_rows::ExpSum;
using softmax_rows::MaxOrNan;

// The largest of n logits, or NaN where softmax has no value: a NaN or +inf among them, or nothing
// but -inf.
template <typename T>
T FiniteMax(const T* z, int64_t n) {
  const T max = MaxOrNan(z, n);
  return std::isfinite(max) ? max : std::numeric_limits<T>::quiet_NaN();
}

template <typename T>
double LossOf(T max, T sum, T target_logit) {
  return static_cast<double>(max) - static_cast<double>(target_logit) +
         std::log(static_cast<double>(sum));
}

template <typename T>
double ForwardRow(const T* z, int64_t n, int32_t target) {
  if (target == kIgnoredTarget) return 0;
  const T max = FiniteMax(z, n);
  if (std::isnan(max)) return std::numeric_limits<double>::quiet_NaN();
  return LossOf(max, ExpSum<T>(z, max, n, nullptr), z[target]);
}

template <typename T>
double ForwardBackwardRow(T* z, int64_t n, int32_t target, double scale) {
  if (target == kIgnoredTarget) {
    std::fill(z, z + n, T{0});
    return 0;
  }
  const T max = FiniteMax(z, n);
  if (std::isnan(max)) {
    std::fill(z, z + n, max);
    return std::numeric_limits<double>::quiet_NaN();
  }
  const T target_logit = z[target];
  const T sum = ExpSum<T>(z, max, n, z);
  const T factor = static_cast<T>(scale / static_cast<double>(sum));
  row_loops::Map<T>(
      n, z, [factor](Vec<T> e) { return e * factor; }, z);
  z[target] -= static_cast<T>(scale);
  return LossOf(max, sum, target_logit);
}

}  // namespace

void CrossEntropyForwardBackward(const OpContext& context, Indices targets, double scale,
                                 TensorView logits, TensorView losses) {
  EK_TRACE_ON_CUDA(context, CrossEntropyForwardBackward, targets, scale, logits, losses)
  EK_CHECK(logits.dim(0) == targets.size() && losses.num_elements() == targets.size())
      << logits.shape.ToString() << " " << targets.size() << " " << losses.shape.ToString();
  DispatchFloat(logits.dtype, [&]<typename T>() {
    const auto rows = row_loops::RowsOf<T>(logits);
    double* loss = losses.as<double>();
    context.pool.ParallelForEach(rows.count, [&](int64_t t) {
      loss[t] = ForwardBackwardRow<T>(rows[t], rows.columns, targets[t], scale);
    });
  });
}

void CrossEntropyForward(const OpContext& context, ConstTensorView logits, Indices targets,
                         TensorView losses) {
  EK_TRACE_ON_CUDA(context, CrossEntropyForward, logits, targets, losses)
  EK_CHECK(logits.dim(0) == targets.size() && losses.num_elements() == targets.size())
      << logits.shape.ToString() << " " << targets.size() << " " << losses.shape.ToString();
  DispatchFloat(logits.dtype, [&]<typename T>() {
    const auto rows = row_loops::RowsOf<T>(logits);
    double* loss = losses.as<double>();
    context.pool.ParallelForEach(
        rows.count, [&](int64_t t) { loss[t] = ForwardRow<T>(rows[t], rows.columns, targets[t]); });
  });
}

}  // namespace evenkeel
