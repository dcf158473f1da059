// Cuts a list of attention tasks into the tiles that the CUDA kernels work through, in the order in
// which blocks take them. A plan is made once per list and serves every layer, forward and
// backward.
//
// There may be very many tiles, so the host does not touch them. It makes descriptors: a few for
// each task and run of keys, none for a tile. A small kernel makes the tiles from them on the
// device (LaunchPlanTiles; softmax_plan_tiles.h says how).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention/attention_task_type.h"

namespace evenkeel {

// Rows per tile, and rows of keys and values of one head that stay in the L2 cache while the
// forward pass uses them; a function of the head size alone, see TilingOf.
struct SoftmaxAttentionTiling {
  int forward_queries = 0;
  int backward_queries = 0;
  int backward_keys = 0;
  int cached_keys = 0;
};

// Queries [q_begin, q_begin + q_rows). Row i sees the first min(visible + i, num_keys) keys from
// kv_begin on, none if that is negative; num_keys is what the last row sees, 0 for none. Batches
// are as in KeyTile, of the forward pass alone.
struct QueryTile {
  int32_t q_begin;
  int32_t q_rows;
  int32_t kv_begin;
  int32_t visible;
  int32_t num_keys;
  int32_t batch_begin;
  int32_t batch_tiles;
  int32_t heads_at_once;
};

// Keys [kv_begin, kv_begin + kv_rows); tasks [task_begin, task_end) of the plan may see some of
// them. The tile is of the batch [batch_begin, batch_begin + batch_tiles) of tiles, of which
// `heads_at_once` key/value heads are worked on together, see TicketOf.
struct KeyTile {
  int32_t kv_begin;
  int32_t kv_rows;
  int32_t task_begin;
  int32_t task_end;
  int32_t batch_begin;
  int32_t batch_tiles;
  int32_t heads_at_once;
  int32_t unused;
};

// A task as the kernels read it: query i sees the first min(visible + i, kv_len) keys. Its query
// tiles of the backward pass are numbered from `first_tile`. Key tiles of its run of keys start at
// `first_key_tile_row` and every backward_keys rows after.
struct PlannedTask {
  int32_t q_begin;
  int32_t q_len;
  int32_t kv_begin;
  int32_t kv_len;
  int32_t visible;
  int32_t first_tile;
  int32_t first_key_tile_row;
  int32_t unused;
};

// Forward tiles [first_tile, ...) up to the next stretch: those of query tile `top` of a task, of
// the one before it, and so on.
struct QueryStretch {
  int32_t first_tile;
  int32_t task;  // of the listed ones
  int32_t top;
  int32_t batch_begin;
  int32_t batch_tiles;
  int32_t heads_at_once;
  int32_t unused[2];
};

// Keys that tasks see without a gap, and those tasks. Its tiles are numbered from `first_tile`, run
// by run in the order of work; how the runs of a batch take turns is MakeKeyTile's.
struct KeyRun {
  int32_t first_tile;
  int32_t num_tiles;
  int32_t kv_begin;
  int32_t kv_end;
  int32_t task_begin;
  int32_t task_end;
  int32_t batch;
  int32_t unused;
};

// Runs whose tiles are merged.
struct KeyBatch {
  int32_t first_run;
  int32_t end_run;
  int32_t first_tile;
  int32_t num_tiles;
  int32_t longest;  // tiles of the run with the most
  int32_t heads_at_once;
  int32_t unused[2];
};

// All descriptors in one block of bytes, so that one copy brings a plan to the device.
struct SoftmaxAttentionPlan {
  SoftmaxAttentionTiling tiling;
  int64_t num_forward_tiles = 0;
  int64_t num_query_tiles = 0;  // of the backward pass
  int64_t num_key_tiles = 0;
  int64_t num_tasks = 0;
  int64_t num_listed = 0;
  int64_t num_stretches = 0;
  int64_t num_runs = 0;
  int64_t num_batches = 0;
  std::vector<std::byte> bytes;
};

// What the attention kernels read, on the host or the device.
struct SoftmaxAttentionPlanView {
  SoftmaxAttentionTiling tiling;
  int64_t num_forward_tiles = 0;
  int64_t num_query_tiles = 0;
  int64_t num_key_tiles = 0;
  int64_t num_tasks = 0;
  const QueryTile* forward_tiles = nullptr;  // by batch, most keys first
  const QueryTile* query_tiles = nullptr;    // by task, then by row
  const KeyTile* key_tiles = nullptr;        // by batch; ascending within a run of keys
  // Those with queries and keys, whose keys end last first; equals in the order of the list.
  const PlannedTask* tasks = nullptr;
  // Tickets for forward tiles that blocks have drawn; 0 between launches. So launches that share a
  // plan's memory come one after the other.
  uint32_t* forward_tickets = nullptr;
};

// head_dim: the larger of the head sizes of q, k and of v; at most 256.
SoftmaxAttentionTiling TilingOf(int head_dim);

// Row indices must stay below 2^31. group: query heads that share a key/value head, which matters
// for speed alone. `backward` adds what only the backward pass needs. Costs the host microseconds:
// linear in the tasks, apart from at most 65 stretches a task.
SoftmaxAttentionPlan PlanSoftmaxAttention(const AttentionTask* tasks, int64_t num_tasks,
                                          const SoftmaxAttentionTiling& tiling, int group,
                                          bool backward);

// Bytes of memory that a plan takes where it is used: a copy of plan.bytes in front, its tiles
// behind, and the tickets.
size_t PlanMemoryBytes(const SoftmaxAttentionPlan& plan);

// `memory`: PlanMemoryBytes of it, aligned to 16.
SoftmaxAttentionPlanView ViewOf(const SoftmaxAttentionPlan& plan, void* memory);

}  // namespace evenkeel
