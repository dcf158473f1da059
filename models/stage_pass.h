// A micro-batch on its way through a rank's layers.
#pragma once

#include <cstdint>
#include <vector>

#include "models/block.h"
#include "models/token_layout.h"
#include "runtime/data/packed_batch.h"
#include "runtime/tensor/arena.h"

namespace evenkeel {

// One micro-batch in one of the rank's chunks of layers, from the start of its forward pass to the
// end of its backward pass. Its tensors live in the arena of the context it was begun with. Movable
// only. Shapes as in models/block.h.
struct StagePass {
  const PackedBatch* batch = nullptr;  // the whole micro-batch; borrowed
  PackedBatch shard;                   // with context parallelism: this rank's tokens of it
  TokenLayout layout;
  TensorView x;         // [S, C] input: the embedding's output, or what the previous stage sends
  TensorView y;         // [S, C] output, after the forward pass
  TensorView dx;        // [S, C] gradient of y before the backward pass, of x after it
  TensorView embedded;  // [S, C] before the embedding's norm, where there is one
  std::vector<int32_t> slice_tokens;  // tokens counted within this rank's slice of the vocabulary
  std::vector<BlockActivations> saved;
  std::vector<Arena::Mark> marks;  // where each layer's activations begin

  // No rank has a token of the micro-batch.
  bool is_empty() const { return batch->tokens.empty(); }
  // What this rank's core attention sees.
  const PackedBatch& tokens() const { return layout.context == nullptr ? *batch : shard; }
};

}  // namespace evenkeel
