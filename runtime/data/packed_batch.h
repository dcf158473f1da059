// Documents, or pieces of documents, laid end to end: what one forward pass of a rank takes.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/base/token_target.h"

namespace evenkeel {

// T tokens in P pieces. Attention, and the state of linear attention, never cross a piece. A
// document that the end of a sample cuts goes on in another sample as a piece of its own, and
// positions restart at 0 in it: a piece is computed without the tokens before it, so its first
// token has the position that says so, and no position ever reaches beyond the longest sample.
struct PackedBatch {
  std::vector<int32_t> tokens;   // [T]
  std::vector<int32_t> targets;  // [T], the next token of the document, or kIgnoredTarget
  std::vector<int64_t> cu_seqlens = {
      0};                          // [P + 1], rising from 0 to T: piece p is [cu[p], cu[p + 1])
  std::vector<int64_t> positions;  // [T], position of each token in its piece

  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t num_pieces() const { return static_cast<int64_t>(cu_seqlens.size()) - 1; }

  // Counts the targets that take part in the loss.
  int64_t num_valid() const;

  // Adds one piece; `piece_targets` has as many entries as `piece_tokens`. An empty piece adds
  // nothing.
  void AppendPiece(absl::Span<const int32_t> piece_tokens, absl::Span<const int32_t> piece_targets);

  // Empties the batch and keeps its memory.
  void Clear();

  // Checks what is said above, and that tokens and targets are in [0, vocab_size).
  absl::Status Validate(int64_t vocab_size) const;

  bool operator==(const PackedBatch&) const = default;
};

}  // namespace evenkeel
