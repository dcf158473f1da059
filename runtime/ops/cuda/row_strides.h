// Where the rows of a tensor [T, H, C] begin. C is dense; a tensor [T, C] has one head.
#pragma once

#include <cstdint>

namespace evenkeel {

// Elements from token to token and, where there are several heads, from head to head.
struct RowStrides {
  int64_t token = 0;
  int64_t head = 0;
};

}  // namespace evenkeel
