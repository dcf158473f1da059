// A rank's place in the layout of a run, and what it sees of a micro-batch. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "parallel/context_strategy.h"
#include "parallel/mesh.h"
#include "parallel/sharding.h"
#include "parallel/token_shards.h"
#include "scheduler/disaggregation_plan.h"

namespace evenkeel {

struct RankLayout {
  MeshShape mesh;
  MeshCoord coord;
  ShardingStage sharding = ShardingStage::kNone;
  ContextStrategy context;
  int key_value_copies = 1;  // tensor-parallel ranks that hold the same key/value head
  int64_t window_bytes = 0;  // of this rank's GPU, that tensor-parallel ranks copy rows into
  // Where softmax attention is pooled: dedicated servers of each tensor-parallel place, and how
  // servers share.
  int num_dedicated = 0;
  DisaggregationOptions disaggregation;

  // Whether softmax attention is computed by the servers of a pool, in nano-batches.
  bool pools_attention() const { return context.softmax == SoftmaxExchange::kDisaggregated; }
  // Of the pool.
  int64_t num_servers() const {
    return num_dedicated > 0 ? num_dedicated : int64_t{1} * mesh.pp * mesh.dp * mesh.cp;
  }
  // The ranks with the same parameters, and this rank's place among them.
  int data_ranks() const { return mesh.dp * mesh.cp; }
  int data_place() const { return coord.dp * mesh.cp + coord.cp; }
  // What becomes of `sharding` where there is nobody to share with.
  ShardingStage stage() const { return data_ranks() > 1 ? sharding : ShardingStage::kNone; }
};

// Tokens of a micro-batch, as a context-parallel rank sees them.
struct MicroBatchTokens {
  int64_t all = 0;                // of all cp ranks
  int64_t longest = 0;            // document
  std::vector<int64_t> rows;      // of each
  int64_t pieces_before = 0;      // this rank's pieces that continue an earlier one
  int64_t pieces_after = 0;       // this rank's pieces that a later one continues
  int64_t all_pieces_before = 0;  // likewise, of all ranks
  int64_t all_pieces_after = 0;

  int64_t mine(const RankLayout& layout) const {
    return rows[static_cast<size_t>(layout.coord.cp)];
  }
};

// Of documents of the given lengths.
MicroBatchTokens CountTokens(const RankLayout& layout, absl::Span<const int64_t> document_lengths);

// Rows of the chunks in which the rank works through its tokens: each of two halves is a part.
int64_t ChunkRows(const RankLayout& layout, const MicroBatchTokens& tokens,
                  const ChunkLimits& chunks);

// Rows of the stream that tensor-parallel rank `rank` of `ranks` holds of `tokens`, which are
// shared chunk by chunk (parallel/token_shards.h).
int64_t StreamRows(int64_t tokens, int64_t chunk_rows, int ranks, int rank);

}  // namespace evenkeel
