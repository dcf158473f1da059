// What each data-parallel rank owns of the state of a model (parameter_store.h). Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "runtime/base/row_range.h"

namespace evenkeel {

// ZeRO 0 to 3.
enum class ShardingStage { kNone, kOptimizer, kGradients, kParameters };

// What rank `rank` of `ranks` owns: ranges [from, from + count) of the flat buffer that lie at `to`
// in its owned buffers, one for each unit, ascending. unit_begin [units + 1] ascends from 0; with a
// stage other than kNone its values are multiples of the number of ranks.
std::vector<RowRange> OwnedRanges(absl::Span<const int64_t> unit_begin, ShardingStage stage,
                                  int ranks, int rank);

}  // namespace evenkeel
