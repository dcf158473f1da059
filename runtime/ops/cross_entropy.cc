#include "runtime/ops/cross_entropy.h"

#include <cmath>
#include <limits>

#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/row_loops.h"

namespace evenkeel {
namespace {

using row_loops::LoadUpTo;
using row_loops::StoreUpTo;
using simd::Vec;

// Returns the largest of n logits, or NaN where softmax has no value: a NaN or +inf among them, or
// nothing but -inf.
template <typename T>
T FiniteMax(const T* z, int64_t n) {
  constexpr int64_t kLanes = simd::kLanes<T>;
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  Vec<T> max = simd::Splat<T>(kLowest);
  typename simd::IntOf<T>::type is_nan = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec<T> v = simd::Load(z + i);
    max = simd::Max<T>(v, max);  // v > max is false for a NaN v: max stays clean
    is_nan |= v != v;
  }
  T best = simd::Max<T>(max);
  bool any_nan = false;
  for (int64_t j = 0; j < kLanes; ++j) any_nan |= is_nan[j] != 0;
  for (; i < n; ++i) {
    best = z[i] > best ? z[i] : best;
    any_nan |= std::isnan(z[i]);
  }
  return any_nan || !std::isfinite(best) ? std::numeric_limits<T>::quiet_NaN() : best;
}

// Sum of exp(z - max); writes the terms to `terms`, which may be z, unless it is null.
template <typename T>
T ExpSum(const T* z, T max, int64_t n, T* terms) {
  constexpr int64_t kLanes = simd::kLanes<T>;
  Vec<T> sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    for (int64_t j = 0; j < 2; ++j) {
      const Vec<T> e = simd::Exp<T>(simd::Load(z + i + j * kLanes) - max);
      if (terms != nullptr) simd::Store<T>(terms + i + j * kLanes, e);
      sums[j] += e;
    }
  }
  for (; i < n; i += kLanes) {
    const int64_t left = n - i;
    Vec<T> e = simd::Exp<T>(LoadUpTo(z + i, left) - max);
    for (int64_t j = left; j < kLanes; ++j) e[j] = 0;
    if (terms != nullptr) StoreUpTo<T>(terms + i, e, left);
    sums[0] += e;
  }
  return simd::Sum<T>(sums[0] + sums[1]);
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
