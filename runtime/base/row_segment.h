// Which rows of one tensor are added up to rows of another.
#pragma once

#include <cstdint>

namespace evenkeel {

// Rows [to, to + count) of a tensor are sums over terms [first_term, first_term + num_terms) of a
// list of rows of another: term f adds that one's rows [f, f + count).
struct RowSegment {
  int64_t to;
  int64_t count;
  int64_t first_term;
  int64_t num_terms;
};

}  // namespace evenkeel
