// Who adds what to the gradient of an embedding table: the tokens of a batch, grouped. Plain host
// code, made once a batch.
#pragma once

#include <cstdint>
#include <vector>

namespace evenkeel {

// A run of up to kEmbeddingPieceTokens occurrences of one token id. Ids with several runs are
// summed in two stages: each run into a row of its own of a workspace, then those rows in order.
struct EmbeddingPiece {
  int32_t token = 0;  // the id
  int32_t begin = 0;  // in `order`
  int32_t count = 0;
  int32_t slot = -1;  // row of the workspace, or -1 where the id has this run alone
};

// An id with several runs: rows [slot, slot + count) of the workspace.
struct EmbeddingSplit {
  int32_t token = 0;
  int32_t slot = 0;
  int32_t count = 0;
};

constexpr int32_t kEmbeddingPieceTokens = 64;

// One block of memory for the device, sections aligned to 16 bytes, and where they lie in it.
struct EmbeddingPlan {
  std::vector<char> bytes;
  int64_t num_pieces = 0;
  int64_t num_splits = 0;
  int64_t num_slots = 0;
  int64_t pieces_offset = 0;
  int64_t splits_offset = 0;
};

// A plan in device memory.
struct EmbeddingPlanView {
  const int32_t* order = nullptr;  // tokens' places, ascending id, then ascending place
  const EmbeddingPiece* pieces = nullptr;
  const EmbeddingSplit* splits = nullptr;
  int64_t num_pieces = 0;
  int64_t num_splits = 0;
  int64_t num_slots = 0;
};

// Sorts the tokens and leaves out those with negative ids, which have no row. O(T) by radix.
EmbeddingPlan PlanEmbeddingBackward(const int32_t* tokens, int64_t num_tokens);

// `device` holds a copy of plan.bytes.
EmbeddingPlanView ViewOf(const EmbeddingPlan& plan, const void* device);

}  // namespace evenkeel
