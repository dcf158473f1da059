#include "parallel/sharding.h"

#include "runtime/base/check.h"

namespace evenkeel {

std::vector<RowRange> OwnedRanges(absl::Span<const int64_t> unit_begin, ShardingStage stage,
                                  int ranks, int rank) {
  std::vector<RowRange> owned;
  const int64_t exact_end = unit_begin[1];
  for (size_t unit = 0; unit + 1 < unit_begin.size(); ++unit) {
    const int64_t begin = unit_begin[unit], size = unit_begin[unit + 1] - begin;
    if (unit == 0 || stage == ShardingStage::kNone) {
      owned.push_back({begin, begin, size});
      continue;
    }
    EK_CHECK(begin % ranks == 0 && size % ranks == 0) << "unit " << unit << " of " << size;
    const int64_t part = size / ranks;
    owned.push_back({begin + rank * part, exact_end + (begin - exact_end) / ranks, part});
  }
  return owned;
}

}  // namespace evenkeel
