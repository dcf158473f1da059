// Which parameters of a flat buffer decay, apart from what computes it: kernels include this and
// nothing else of the optimizer.
#pragma once

#include <cstdint>

namespace evenkeel {

// Elements from `begin` up to the next range's begin decay by `weight_decay`.
struct AdamWRange {
  int64_t begin = 0;
  double weight_decay = 0;
};

}  // namespace evenkeel
