// Checks hand-written gradients against numerical ones, in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "runtime/base/philox.h"

namespace evenkeel {

// Returns (d/de) loss() at x + e direction, by the five-point rule: the error is of order step^4.
// x is moved and put back.
inline double DirectionalDerivative(const std::function<double()>& loss, double* x,
                                    const std::vector<double>& direction, double step) {
  const std::vector<double> saved(x, x + direction.size());
  const auto at = [&](double e) {
    for (size_t i = 0; i < saved.size(); ++i) x[i] = saved[i] + e * direction[i];
    return loss();
  };
  const double near = at(step) - at(-step), far = at(2 * step) - at(-2 * step);
  std::copy(saved.begin(), saved.end(), x);
  return (8 * near - far) / (12 * step);
}

// Compares grad [n], the claimed gradient of loss() at x [n], with numerical derivatives along
// `samples` random coordinates and as many random directions of -1, 0 and 1, and returns the
// largest relative error. Coordinates are compared relative to the gradient's largest element, so
// that elements that happen to be near zero do not report rounding. NaN anywhere gives infinity.
// `step` should be small against the scale on which loss() curves.
inline double MaxGradientError(const std::function<double()>& loss, double* x, const double* grad,
                               int64_t n, int samples, uint64_t seed, double step = 1e-3) {
  const Philox random(seed, 0);
  uint64_t draw = 0;
  double largest = 0, worst = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(grad[i]));
  const auto compare = [&](double claimed, double numeric, double floor) {
    const double error =
        std::abs(claimed - numeric) / std::max({std::abs(claimed), std::abs(numeric), floor, 1e-6});
    worst = std::isnan(error) ? HUGE_VAL : std::max(worst, error);
  };
  for (int sample = 0; sample < samples && n > 0; ++sample) {
    std::vector<double> direction(static_cast<size_t>(n));
    const auto coordinate = static_cast<size_t>(random.Bits(draw++) % static_cast<uint64_t>(n));
    direction[coordinate] = 1;
    compare(grad[coordinate], DirectionalDerivative(loss, x, direction, step), 0.1 * largest);

    double claimed = 0, squares = 0;
    for (size_t i = 0; i < direction.size(); ++i) {
      direction[i] = static_cast<double>(random.Bits(draw++) % 3) - 1;
      claimed += direction[i] * grad[i];
      squares += direction[i] * direction[i] * grad[i] * grad[i];
    }
    compare(claimed, DirectionalDerivative(loss, x, direction, step), 0.1 * std::sqrt(squares));
  }
  return worst;
}

}  // namespace evenkeel
