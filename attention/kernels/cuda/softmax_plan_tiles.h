// How the tiles of a plan follow from its descriptors, each by itself: a thread on the device makes
// one. Plain arithmetic, compiled for the host too, where tests check it.
#pragma once

#include <cstdint>

#include "attention/kernels/cuda/softmax_attention_plan.h"
#include "runtime/base/host_device.h"

namespace evenkeel {

// The descriptors, and the tiles they become, in the memory of a plan.
struct SoftmaxPlanPieces {
  SoftmaxAttentionTiling tiling;
  int32_t num_forward_tiles = 0;
  int32_t num_query_tiles = 0;
  int32_t num_key_tiles = 0;
  int32_t num_listed = 0;
  int32_t num_stretches = 0;
  int32_t num_runs = 0;
  const PlannedTask* tasks = nullptr;   // as in SoftmaxAttentionPlanView
  const PlannedTask* listed = nullptr;  // those with queries, in the order of the list
  const QueryStretch* stretches = nullptr;
  const KeyRun* runs = nullptr;
  const KeyBatch* batches = nullptr;
  QueryTile* forward_tiles = nullptr;
  QueryTile* query_tiles = nullptr;
  KeyTile* key_tiles = nullptr;
  uint32_t* forward_tickets = nullptr;
};

// `memory` as in ViewOf.
SoftmaxPlanPieces PiecesOf(const SoftmaxAttentionPlan& plan, void* memory);

// The descriptor of [count], in ascending order of first_tile, that tile `index` belongs to.
template <typename Descriptor>
EK_HOST_DEVICE inline int32_t OwnerOfTile(const Descriptor* descriptors, int32_t count,
                                          int32_t index) {
  int32_t begin = 0, end = count;
  while (end - begin > 1) {
    const int32_t middle = begin + (end - begin) / 2;
    (descriptors[middle].first_tile <= index ? begin : end) = middle;
  }
  return begin;
}

// The query tile that begins with the task's query `row`, outside of batches.
EK_HOST_DEVICE inline QueryTile QueryTileAt(const PlannedTask& task, int32_t row, int32_t rows) {
  const int32_t count = task.q_len - row < rows ? task.q_len - row : rows;
  const int32_t seen = task.visible - 1 + row + count;
  const int32_t num_keys = seen < 0 ? 0 : seen < task.kv_len ? seen : task.kv_len;
  return {task.q_begin + row, count, task.kv_begin, task.visible + row, num_keys, 0, 0, 0};
}

EK_HOST_DEVICE inline void MakeForwardTile(const SoftmaxPlanPieces& plan, int32_t index) {
  const QueryStretch& stretch =
      plan.stretches[OwnerOfTile(plan.stretches, plan.num_stretches, index)];
  const int32_t number = stretch.top - (index - stretch.first_tile);
  const int32_t rows = plan.tiling.forward_queries;
  QueryTile tile = QueryTileAt(plan.listed[stretch.task], number * rows, rows);
  tile.batch_begin = stretch.batch_begin;
  tile.batch_tiles = stretch.batch_tiles;
  tile.heads_at_once = stretch.heads_at_once;
  plan.forward_tiles[index] = tile;
}

EK_HOST_DEVICE inline void MakeQueryTile(const SoftmaxPlanPieces& plan, int32_t index) {
  const PlannedTask& task = plan.listed[OwnerOfTile(plan.listed, plan.num_listed, index)];
  const int32_t rows = plan.tiling.backward_queries;
  plan.query_tiles[index] = QueryTileAt(task, (index - task.first_tile) * rows, rows);
}

// The place of tile `number` of a run among those of the batch. The runs are merged so that they
// end together. In as many rounds as the longest run has tiles, each run adds
//   num_tiles / longest
// a round, and its tile t comes in the first round r with (r + 1) num_tiles >= (t + 1) longest;
// runs that have a tile in a round come in their order. So before round r there are floor(r
// num_tiles / longest) tiles of each.
EK_HOST_DEVICE inline int32_t PlaceInBatch(const KeyRun* runs, const KeyBatch& batch, int32_t run,
                                           int32_t number) {
  if (batch.end_run - batch.first_run == 1) return number;
  const auto longest = static_cast<uint64_t>(batch.longest);
  const auto num_tiles = static_cast<uint64_t>(runs[run].num_tiles);
  const uint64_t round = ((static_cast<uint64_t>(number) + 1) * longest - 1) / num_tiles;
  uint64_t place = 0;
  for (int32_t i = batch.first_run; i < batch.end_run; ++i) {
    const uint64_t rounds = i < run ? round + 1 : round;
    place += rounds * static_cast<uint64_t>(runs[i].num_tiles) / longest;
  }
  return static_cast<int32_t>(place);
}

// Tasks are sorted by the end of their keys, the last first: those that reach the tile come first.
EK_HOST_DEVICE inline void FindTasksOf(const PlannedTask* tasks, const KeyRun& run, KeyTile& tile) {
  int32_t begin = run.task_begin, end = run.task_end;
  while (begin < end) {
    const int32_t middle = begin + (end - begin) / 2;
    if (tasks[middle].kv_begin + tasks[middle].kv_len > tile.kv_begin) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  // Of these, some may begin behind the tile; of shards of a document none does.
  const int32_t tile_end = tile.kv_begin + tile.kv_rows;
  tile.task_begin = run.task_begin;
  while (tasks[tile.task_begin].kv_begin >= tile_end) ++tile.task_begin;
  tile.task_end = end;
  while (tasks[tile.task_end - 1].kv_begin >= tile_end) --tile.task_end;
}

// Makes tile `index`, by the numbers of the runs, and puts it where it is in the order of work.
EK_HOST_DEVICE inline void MakeKeyTile(const SoftmaxPlanPieces& plan, int32_t index) {
  const int32_t owner = OwnerOfTile(plan.runs, plan.num_runs, index);
  const KeyRun& run = plan.runs[owner];
  const KeyBatch& batch = plan.batches[run.batch];
  const int32_t number = index - run.first_tile;
  const int32_t rows = plan.tiling.backward_keys;
  KeyTile tile = {};
  tile.kv_begin = run.kv_begin + number * rows;
  tile.kv_rows = run.kv_end - tile.kv_begin < rows ? run.kv_end - tile.kv_begin : rows;
  FindTasksOf(plan.tasks, run, tile);
  tile.batch_begin = batch.first_tile;
  tile.batch_tiles = batch.num_tiles;
  tile.heads_at_once = batch.heads_at_once;
  plan.key_tiles[batch.first_tile + PlaceInBatch(plan.runs, batch, owner, number)] = tile;
}

// `index` runs through the tiles of all kinds, see NumPlanTiles.
EK_HOST_DEVICE inline void MakePlanTile(const SoftmaxPlanPieces& plan, int64_t index) {
  if (index == 0) *plan.forward_tickets = 0;
  if (index < plan.num_forward_tiles) {
    MakeForwardTile(plan, static_cast<int32_t>(index));
    return;
  }
  index -= plan.num_forward_tiles;
  if (index < plan.num_query_tiles) {
    MakeQueryTile(plan, static_cast<int32_t>(index));
    return;
  }
  MakeKeyTile(plan, static_cast<int32_t>(index - plan.num_query_tiles));
}

EK_HOST_DEVICE inline int64_t NumPlanTiles(const SoftmaxPlanPieces& plan) {
  return int64_t{plan.num_forward_tiles} + plan.num_query_tiles + plan.num_key_tiles;
}

}  // namespace evenkeel
