// The pool of attention that comes from batches: whose rows are which tokens of which document.
// Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "parallel/sequence_layout.h"
#include "scheduler/attention_pool.h"

namespace evenkeel {

// A packed batch that takes part in a pool.
struct PooledBatch {
  std::vector<int64_t> cu_seqlens;  // [D + 1]
  std::vector<int> ranks;           // of the pool, that hold its tokens
  // As this says: kHalves, or kContiguous, where all of the batch is the first nano-batch.
  SequenceSplit split = SequenceSplit::kHalves;
};

// Nano-batches are halves of every batch's stream: no query of the first half needs keys of the
// second, so that attention of one can travel while ranks compute the other's layers.
enum class NanoBatch { kFirst, kSecond };

// Empties pool.documents and pool.pieces and fills them with what the nano-batch of the batches
// computes. Documents come in the order of batches; those the middle cuts are in the second
// nano-batch with all their keys and the later queries.
void FillPool(absl::Span<const PooledBatch> batches, NanoBatch nano, AttentionPool& pool);

}  // namespace evenkeel
