// Which layers of a model each pipeline stage holds. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace evenkeel {

// Returns the first layer of each stage and, at the end, num_layers: num_stages + 1 values; stage s
// holds the layers [first[s], first[s + 1]), at least one. `requested` has the number of layers of
// each stage, or is empty for an even split: where it is not even, the stages in the middle have
// one more than those at the ends, which also hold the embedding and the head; the last stage is
// the last to get one. The error names everything that is wrong and the nearest split that is
// right.
absl::StatusOr<std::vector<int64_t>> SplitLayers(int64_t num_layers, int num_stages,
                                                 absl::Span<const int64_t> requested);

}  // namespace evenkeel
