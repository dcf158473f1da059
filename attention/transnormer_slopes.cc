#include <cmath>
#include <cstdint>
#include <vector>

#include "attention/lightning_attention.h"
#include "runtime/base/check.h"

namespace evenkeel {
namespace {

// 2^(-8 (h + 1) / H)
double AlibiSlope(int64_t head, int64_t num_heads) {
  return std::exp2(-8.0 * static_cast<double>(head + 1) / static_cast<double>(num_heads));
}

}  // namespace

std::vector<double> TransNormerSlopes(int64_t num_heads, int64_t layer, int64_t num_layers) {
  EK_CHECK(num_heads >= 1 && 0 <= layer && layer < num_layers)
      << num_heads << " heads, layer " << layer << " of " << num_layers;
  int64_t power = 1;
  while (2 * power <= num_heads) power *= 2;
  const double depth =
      num_layers == 1 ? 0.0 : static_cast<double>(layer) / static_cast<double>(num_layers - 1);
  std::vector<double> slopes;
  for (int64_t h = 0; h < num_heads; ++h) {
    // The heads beyond a power of two take every other slope of twice as many heads.
    const double slope = h < power ? AlibiSlope(h, power) : AlibiSlope(2 * (h - power), 2 * power);
    slopes.push_back(slope * (1.0 - depth + 1e-5));
  }
  return slopes;
}

}  // namespace evenkeel
