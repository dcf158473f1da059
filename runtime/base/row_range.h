// Which rows of one tensor become which rows of another.
#pragma once

#include <cstdint>

namespace evenkeel {

// Rows [from, from + count) of one tensor that go to rows [to, to + count) of another.
struct RowRange {
  int64_t from;
  int64_t to;
  int64_t count;
};

}  // namespace evenkeel
