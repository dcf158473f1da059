#include "launch/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/base/philox.h"

namespace evenkeel {
namespace {

constexpr uint64_t kSamplingStream = 0x53414d504c45;  // "SAMPLE"

}  // namespace

int32_t SampleToken(const std::vector<double>& logits, const SamplingOptions& options,
                    uint64_t index) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto more_likely = [&](int32_t a, int32_t b) {
    const double x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  if (options.temperature <= 0) return *std::min_element(order.begin(), order.end(), more_likely);
  std::sort(order.begin(), order.end(), more_likely);
  if (options.top_k > 0 && options.top_k < static_cast<int64_t>(order.size())) {
    order.resize(static_cast<size_t>(options.top_k));
  }
  std::vector<double> weights(order.size());
  const double highest = logits[static_cast<size_t>(order[0])];
  double sum = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    weights[i] = std::exp((logits[static_cast<size_t>(order[i])] - highest) / options.temperature);
    sum += weights[i];
  }
  if (options.top_p < 1) {
    double kept = 0;
    size_t count = 0;
    while (count < weights.size() && (count == 0 || kept < options.top_p * sum)) {
      kept += weights[count++];
    }
    order.resize(count);
    weights.resize(count);
    sum = kept;
  }
  double target = Philox(options.seed, kSamplingStream).Uniform(index) * sum;
  for (size_t i = 0; i < order.size(); ++i) {
    target -= weights[i];
    if (target < 0) return order[i];
  }
  return order.back();
}

}  // namespace evenkeel
