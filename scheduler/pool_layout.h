// The pool of attention that comes from batches: whose rows are which tokens of which document.
// Pure.
#pragma once

#include <array>
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

// Rows of a rank in each of the two nano-batches; the first one's come first.
using NanoRows = std::array<int64_t, 2>;

// Of the batch's `place`th rank.
NanoRows RowsOfNanos(const PooledBatch& batch, int place);
// Of all ranks of a pool; none where no batch has the rank.
std::vector<NanoRows> RowsOfNanos(absl::Span<const PooledBatch> batches, int num_ranks);

}  // namespace evenkeel
