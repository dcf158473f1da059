// Which rank holds which tokens of a micro-batch, in which of its two nano-batches. Pure.
//
// The documents of a micro-batch are cut into as many equal shares of tokens as there are replicas.
// A replica's share is cut into two nano-batches, and each nano-batch over the replica's ranks:
// documents end where a replica's share does, but go on in the next nano-batch and the next rank.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace evenkeel {

constexpr int kNanoBatches = 2;

// Tokens [begin, begin + length) of a document.
struct NanoPiece {
  int owner = 0;  // [0, replicas * ranks), the ranks of a replica side by side
  int nano = 0;
  int64_t begin = 0;
  int64_t length = 0;
};

struct NanoDocument {
  int64_t length = 0;
  std::vector<NanoPiece> pieces;  // ascending and covering; all of nano-batch 0 before those of 1
};

struct NanoLayout {
  std::vector<NanoDocument> documents;
  std::vector<std::array<int64_t, kNanoBatches>> tokens;  // by owner
};

// Cuts documents that lie end to end into so many runs of as many tokens, up to one.
std::vector<std::vector<int64_t>> CutEvenly(absl::Span<const int64_t> documents, int64_t parts);

NanoLayout LayOutNanoBatches(absl::Span<const int64_t> documents, int replicas, int ranks);

}  // namespace evenkeel
