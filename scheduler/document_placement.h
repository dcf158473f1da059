// How documents that follow one another are cut into equal parts, or laid over ranks that take
// equally many tokens. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "scheduler/attention_pool.h"

namespace evenkeel {

enum class DocumentPlacement {
  kInOrder,   // a rank goes on where the one before it stopped
  kHeadTail,  // likewise, but of a document that does not fit it takes as much from its end as from
              // its beginning
};

// Cuts documents that lie end to end into so many runs of as many tokens, up to one.
std::vector<std::vector<int64_t>> CutEvenly(absl::Span<const int64_t> documents, int64_t parts);

// A pool of ranks of speed 1, without bytes. The lengths (at least 1 each) add up to at most
// num_ranks * tokens_per_rank.
AttentionPool PlaceDocuments(absl::Span<const int64_t> lengths, int num_ranks,
                             int64_t tokens_per_rank, DocumentPlacement placement);

}  // namespace evenkeel
