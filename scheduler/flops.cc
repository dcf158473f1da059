#include "scheduler/flops.h"

#include <algorithm>

namespace evenkeel {
namespace {

constexpr double kForwardAndBackward = 3;

double Pairs(int64_t length) {
  const double n = static_cast<double>(length);
  return n * (n + 1) / 2;
}

// (query, key) pairs of a document cut into blocks; block 0 means whole.
double BlockedPairs(int64_t length, int64_t block) {
  if (block <= 0) return Pairs(length);
  return static_cast<double>(length / block) * Pairs(block) + Pairs(length % block);
}

}  // namespace

StepFlops TrainingFlops(const ModelShape& shape, absl::Span<const int64_t> document_lengths) {
  StepFlops flops;
  double tokens = 0;
  for (int64_t length : document_lengths) tokens += static_cast<double>(length);
  flops.matmul =
      kForwardAndBackward * 2 * static_cast<double>(shape.num_matmul_parameters) * tokens;
  for (const LayerShape& layer : shape.layers) {
    const double heads = static_cast<double>(layer.num_heads);
    const double qk = static_cast<double>(layer.qk_size), v = static_cast<double>(layer.v_size);
    if (layer.is_linear) {
      flops.linear_attention += kForwardAndBackward * 4 * heads * qk * v * tokens;
      continue;
    }
    double pairs = 0;
    for (int64_t length : document_lengths) pairs += BlockedPairs(length, layer.block_size);
    flops.softmax_attention += kForwardAndBackward * 2 * heads * (qk + v) * pairs;
  }
  return flops;
}

}  // namespace evenkeel
