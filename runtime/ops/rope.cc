#include <algorithm>
#include <cmath>
#include <numbers>

#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/position.h"
#include "runtime/ops/row_loops.h"

namespace evenkeel {
namespace {

using row_loops::LoadUpTo;
using row_loops::StoreUpTo;
using simd::Vec;

// Llama 3.1: wavelengths short against the original context stay, long ones are stretched by
// `factor`, and between the two the frequency moves from one to the other.
double ScaleLlama3(const RopeConfig& config, double frequency) {
  // How often the original context turns this pair of dimensions.
  const double turns = config.original_max_position_embeddings * frequency / (2 * std::numbers::pi);
  if (turns > config.high_freq_factor) return frequency;
  if (turns < config.low_freq_factor) return frequency / config.factor;
  const double smooth =
      (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor);
  return (1 - smooth) * frequency / config.factor + smooth * frequency;
}

// YaRN (Peng et al., 2023), with the ramp's ends rounded outwards to whole dimensions.
class YarnRamp {
 public:
  YarnRamp(const RopeConfig& config, int64_t head_dim) {
    // The (fractional) dimension that turns `rotations` times within the original context.
    const auto dimension_of = [&](double rotations) {
      return static_cast<double>(head_dim) *
             std::log(config.original_max_position_embeddings /
                      (rotations * 2 * std::numbers::pi)) /
             (2 * std::log(config.theta));
    };
    low_ = std::max(std::floor(dimension_of(config.beta_fast)), 0.0);
    high_ = std::min(std::ceil(dimension_of(config.beta_slow)), static_cast<double>(head_dim - 1));
    if (low_ == high_) high_ += 0.001;
  }

  // 0 where the frequency stays, 1 where it is divided by the factor.
  double at(int64_t j) const {
    return std::clamp((static_cast<double>(j) - low_) / (high_ - low_), 0.0, 1.0);
  }

 private:
  double low_, high_;
};

// Rotates one head: x [2 half].
template <typename T>
void RotateHead(const T* cos, const T* sin, T sign, int64_t half, T* x) {
  for (int64_t j = 0; j < half; j += simd::kLanes<T>) {
    const int64_t left = half - j;
    const Vec<T> c = LoadUpTo(cos + j, left), s = LoadUpTo(sin + j, left) * sign;
    const Vec<T> a = LoadUpTo(x + j, left), b = LoadUpTo(x + half + j, left);
    StoreUpTo<T>(x + j, a * c - b * s, left);
    StoreUpTo<T>(x + half + j, b * c + a * s, left);
  }
}

}  // namespace

std::vector<double> RopeInverseFrequencies(const RopeConfig& config, int64_t head_dim) {
  const YarnRamp ramp(config, head_dim);
  std::vector<double> frequencies(static_cast<size_t>(head_dim / 2));
  for (int64_t j = 0; j < head_dim / 2; ++j) {
    const double frequency =
        std::pow(config.theta, -2.0 * static_cast<double>(j) / static_cast<double>(head_dim));
    double& scaled = frequencies[static_cast<size_t>(j)];
    switch (config.scaling) {
      case RopeScalingKind::kNone:
        scaled = frequency;
        break;
      case RopeScalingKind::kLinear:
        scaled = frequency / config.factor;
        break;
      case RopeScalingKind::kLlama3:
        scaled = ScaleLlama3(config, frequency);
        break;
      case RopeScalingKind::kYarn:
        scaled = frequency * (ramp.at(j) / config.factor + (1 - ramp.at(j)));
        break;
    }
  }
  return frequencies;
}

double RopeAttentionFactor(const RopeConfig& config) {
  if (config.scaling != RopeScalingKind::kYarn) return 1;
  if (config.attention_factor != 0) return config.attention_factor;
  return config.factor <= 1 ? 1 : 0.1 * std::log(config.factor) + 1;
}

void RopeTable(const OpContext& context, Positions positions,
               absl::Span<const double> inverse_frequencies, double attention_factor,
               TensorView cos, TensorView sin) {
  EK_TRACE_ON_CUDA(context, RopeTable, positions, inverse_frequencies, attention_factor, cos, sin)
  const auto half = static_cast<int64_t>(inverse_frequencies.size());
  EK_CHECK(cos.shape == sin.shape && cos.dim(0) == positions.size() && cos.dim(1) == half)
      << positions.size() << " x " << half << " -> " << cos.shape.ToString();
  DispatchFloat(cos.dtype, [&]<typename T>() {
    const auto cos_rows = row_loops::RowsOf<T>(cos);
    const auto sin_rows = row_loops::RowsOf<T>(sin);
    constexpr int64_t kGrain = 8;  // tokens; a sine costs tens of nanoseconds
    context.pool.ParallelFor(cos_rows.count, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const double position = static_cast<double>(positions[t]);
        T* c = cos_rows[t];
        T* s = sin_rows[t];
        for (int64_t j = 0; j < half; ++j) {
          const double angle = position * inverse_frequencies[static_cast<size_t>(j)];
          c[j] = static_cast<T>(attention_factor * std::cos(angle));
          s[j] = static_cast<T>(attention_factor * std::sin(angle));
        }
      }
    });
  });
}

void ApplyRope(const OpContext& context, ConstTensorView cos, ConstTensorView sin, bool inverse,
               TensorView x) {
  EK_TRACE_ON_CUDA(context, ApplyRope, cos, sin, inverse, x)
  EK_CHECK(x.rank() == 3 && cos.shape == sin.shape && cos.dim(0) == x.dim(0) &&
           2 * cos.dim(1) == x.dim(2))
      << x.shape.ToString() << " by " << cos.shape.ToString();
  DispatchFloat(x.dtype, [&]<typename T>() {
    const auto cos_rows = row_loops::RowsOf<T>(cos);
    const auto sin_rows = row_loops::RowsOf<T>(sin);
    const T sign = inverse ? T{-1} : T{1};
    const int64_t heads = x.dim(1), half = cos.dim(1);
    T* data = x.as<T>();
    context.pool.ParallelFor(x.dim(0), row_loops::RowGrain(heads * 2 * half),
                             [&](int64_t begin, int64_t end) {
                               for (int64_t t = begin; t < end; ++t) {
                                 for (int64_t h = 0; h < heads; ++h) {
                                   RotateHead<T>(cos_rows[t], sin_rows[t], sign, half,
                                                 data + t * x.stride(0) + h * x.stride(1));
                                 }
                               }
                             });
  });
}

}  // namespace evenkeel
