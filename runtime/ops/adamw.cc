#include "runtime/ops/adamw.h"

#include <cmath>

#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/row_loops.h"

namespace evenkeel {
namespace {

// The scalars of one step, rounded once.
template <typename T>
struct StepScalars {
  T gradient_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
  T decay;                     // 1 - lr weight_decay
  T step_size;                 // lr / (1 - beta1^step)
  T inverse_sqrt_correction2;  // 1 / sqrt(1 - beta2^step)
  T eps;
};

template <typename T>
void Update(const StepScalars<T>& s, int64_t n, const T* __restrict gradient, T* __restrict weight,
            T* __restrict exp_avg, T* __restrict exp_avg_sq) {
  for (int64_t i = 0; i < n; ++i) {
    const T g = gradient[i] * s.gradient_scale;
    const T m = s.beta1 * exp_avg[i] + s.one_minus_beta1 * g;
    const T v = s.beta2 * exp_avg_sq[i] + s.one_minus_beta2 * g * g;
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    const T denominator = std::sqrt(v) * s.inverse_sqrt_correction2 + s.eps;
    weight[i] = weight[i] * s.decay - s.step_size * m / denominator;
  }
}

}  // namespace

void AdamWStep(const OpContext& context, const AdamWConfig& config, double lr, int64_t step,
               double gradient_scale, ConstTensorView gradient, TensorView weight,
               TensorView exp_avg, TensorView exp_avg_sq) {
  EK_CHECK(step >= 1) << step;
  const int64_t n = weight.num_elements();
  EK_CHECK(gradient.num_elements() == n && exp_avg.num_elements() == n &&
           exp_avg_sq.num_elements() == n && gradient.is_dense() && weight.is_dense() &&
           exp_avg.is_dense() && exp_avg_sq.is_dense())
      << gradient.shape.ToString() << " " << weight.shape.ToString();
  const double step_count = static_cast<double>(step);
  DispatchFloat(weight.dtype, [&]<typename T>() {
    StepScalars<T> s;
    s.gradient_scale = static_cast<T>(gradient_scale);
    s.beta1 = static_cast<T>(config.beta1);
    s.one_minus_beta1 = static_cast<T>(1 - config.beta1);
    s.beta2 = static_cast<T>(config.beta2);
    s.one_minus_beta2 = static_cast<T>(1 - config.beta2);
    s.decay = static_cast<T>(1 - lr * config.weight_decay);
    s.step_size = static_cast<T>(lr / (1 - std::pow(config.beta1, step_count)));
    s.inverse_sqrt_correction2 =
        static_cast<T>(1 / std::sqrt(1 - std::pow(config.beta2, step_count)));
    s.eps = static_cast<T>(config.eps);
    row_loops::ForEachRun<T>(
        context.pool,
        [&s](int64_t count, const T* g, T* w, T* m, T* v) { Update<T>(s, count, g, w, m, v); },
        gradient, weight, exp_avg, exp_avg_sq);
  });
}

void ClippedAdamW(const OpContext& context, const AdamWConfig& config, const AdamWStepParams& step,
                  absl::Span<const AdamWRange> ranges, ConstTensorView sum_of_squares,
                  const AdamWTensors& tensors) {
  EK_CHECK(!ranges.empty() && ranges.front().begin == 0 && sum_of_squares.num_elements() == 1);
  EK_TRACE_ON_CUDA(context, ClippedAdamW, config, step, ranges, sum_of_squares, tensors)
  const double norm = std::sqrt(*sum_of_squares.as<double>());
  if (std::isfinite(norm)) {
    const double factor = step.clip_norm > 0 && norm > step.clip_norm ? step.clip_norm / norm : 1;
    for (size_t i = 0; i < ranges.size(); ++i) {
      const int64_t begin = ranges[i].begin;
      const int64_t end =
          i + 1 < ranges.size() ? ranges[i + 1].begin : tensors.weight.num_elements();
      AdamWConfig of_range = config;
      of_range.weight_decay = ranges[i].weight_decay;
      AdamWStep(context, of_range, step.lr, step.step, factor, tensors.gradient.Rows(begin, end),
                tensors.weight.Rows(begin, end), tensors.exp_avg.Rows(begin, end),
                tensors.exp_avg_sq.Rows(begin, end));
    }
    if (!tensors.copy.empty()) Copy(context, tensors.weight, tensors.copy);
  }
  SetZero(context, tensors.gradient);
}

}  // namespace evenkeel
