#include "attention/kernels/cuda/softmax_attention_plan.h"

#include <algorithm>
#include <array>

#include "attention/kernels/cuda/radix_order.h"
#include "attention/kernels/cuda/softmax_plan_tiles.h"

namespace evenkeel {
namespace {

// Lengths that the forward pass tells apart. Few enough that the tiles of one bucket which see the
// same keys find them in the L2 cache; many enough that blocks end together (within 1 %).
constexpr int32_t kBuckets = 64;

// Blocks that run at the same time, about: plans do not ask the GPU. (An H100
// runs 132; a power of two suits the numbers of tiles.)
constexpr int32_t kBlocksAtOnce = 128;

template <typename T>
constexpr T CeilDiv(T a, T b) {
  return (a + b - 1) / b;
}

// Query tiles [top - num_tiles + 1, top] of a task, whose numbers of keys are of one bucket.
struct QueryCut {
  int32_t bucket;  // 0 has the most keys
  int32_t kv_begin;
  int32_t task;
  int32_t top;
  int32_t num_tiles;
};

// A run of keys, and how much there is to do.
struct KeyRunWork {
  KeyRun run;
  int64_t rows;  // of queries, summed over the tiles
  // Tiles to work on at the same time. Each follows the one before it in every query tile, so it is
  // idle for some steps at its beginning: an eighth of the steps that each takes, but 8 where there
  // are as many, measured fastest (docs/kernels.md).
  int64_t at_once;
};

// What a plan works with; PlanSoftmaxAttention says how long it lives.
struct Scratch {
  std::vector<PlannedTask> listed;
  RadixOrder order;
  std::vector<QueryCut> cuts;
  std::vector<const QueryCut*> sorted_cuts;
  std::vector<KeyRunWork> runs;
};

// The next `count` descriptors of a plan; what was returned before is no longer valid.
template <typename T>
T* Extend(std::vector<std::byte>& bytes, size_t count) {
  static_assert(sizeof(T) == 32);
  const size_t at = bytes.size();
  bytes.resize(at + count * sizeof(T));
  return reinterpret_cast<T*>(bytes.data() + at);
}

// Those with queries. Returns how many query tiles of `rows` they have.
int64_t ListTasks(const AttentionTask* tasks, int64_t num_tasks, int32_t rows,
                  std::vector<PlannedTask>& listed) {
  listed.clear();
  listed.reserve(static_cast<size_t>(num_tasks));
  int32_t first_tile = 0;
  for (int64_t t = 0; t < num_tasks; ++t) {
    const AttentionTask& task = tasks[t];
    if (task.q_len == 0) continue;
    const auto q_len = static_cast<int32_t>(task.q_len);
    listed.push_back({static_cast<int32_t>(task.q_begin), q_len,
                      static_cast<int32_t>(task.kv_begin), static_cast<int32_t>(task.kv_len),
                      static_cast<int32_t>(DiagonalOffset(task) + 1), first_tile, 0, 0});
    first_tile += CeilDiv(q_len, rows);
  }
  return first_tile;
}

// Cuts a task into its buckets of `width` keys, the longest first. A tile sees fewer keys than the
// one behind it, so those of a bucket lie together.
void CutTask(const PlannedTask& task, int32_t index, int32_t rows, int32_t width,
             std::vector<QueryCut>& cuts) {
  int32_t top = (task.q_len - 1) / rows;
  int32_t steps = QueryTileAt(task, top * rows, rows).num_keys / width;
  while (true) {
    // The earliest tile with at least steps * width keys, of which all but the last are full.
    const int32_t missing = steps * width - (task.visible - 1);
    const int32_t last = steps == 0 || missing <= rows ? 0 : (missing - 1) / rows;
    cuts.push_back({kBuckets - steps, task.kv_begin, index, top, top - last + 1});
    if (last == 0) return;
    top = last - 1;
    // Counted down, not divided: so one division need not wait for the one before it.
    const int32_t num_keys = QueryTileAt(task, top * rows, rows).num_keys;
    while (num_keys < steps * width) --steps;
  }
}

// Forward tiles come by buckets of num_keys, the longest first, so that all blocks end together,
// and of one bucket those that see the same keys together, as many heads of them at a time as keep
// the GPU busy. With all heads of one tile after all of another, a few shards of long documents
// would have every block read keys of its own. Of tasks with the same first key the earlier one of
// the list comes first, of its tiles the last.
void PlanForward(int32_t rows, int group, Scratch& scratch, SoftmaxAttentionPlan& plan) {
  const std::vector<PlannedTask>& listed = scratch.listed;
  int32_t most = 0;
  scratch.order.Reserve(listed.size());
  for (size_t t = 0; t < listed.size(); ++t) {
    const PlannedTask& task = listed[t];
    scratch.order.Add(static_cast<uint64_t>(task.kv_begin), static_cast<int32_t>(t));
    most = std::max(most, std::min(task.visible - 1 + task.q_len, task.kv_len));
  }
  const int32_t width = most / kBuckets + 1;
  scratch.cuts.clear();
  for (const RadixOrder::Item& item : scratch.order.Sort()) {
    CutTask(listed[item.index], item.index, rows, width, scratch.cuts);
  }

  std::array<int32_t, kBuckets + 2> begins = {};
  for (const QueryCut& cut : scratch.cuts) ++begins[cut.bucket + 1];
  for (size_t b = 1; b < begins.size(); ++b) begins[b] += begins[b - 1];
  std::vector<const QueryCut*>& sorted = scratch.sorted_cuts;
  sorted.resize(scratch.cuts.size());
  for (const QueryCut& cut : scratch.cuts) sorted[begins[cut.bucket]++] = &cut;

  auto* const stretches = Extend<QueryStretch>(plan.bytes, sorted.size());
  plan.num_stretches = static_cast<int64_t>(sorted.size());
  int32_t first_tile = 0;
  for (size_t begin = 0, end = 0; begin < sorted.size(); begin = end) {
    const int32_t bucket = sorted[begin]->bucket, kv_begin = sorted[begin]->kv_begin;
    int32_t batch_tiles = 0;
    for (;
         end < sorted.size() && sorted[end]->bucket == bucket && sorted[end]->kv_begin == kv_begin;
         ++end) {
      batch_tiles += sorted[end]->num_tiles;
    }
    const int32_t batch_begin = first_tile;
    const int32_t heads_at_once = CeilDiv(kBlocksAtOnce, batch_tiles * group);
    for (size_t i = begin; i < end; ++i) {
      const QueryCut& cut = *sorted[i];
      stretches[i] = {first_tile, cut.task, cut.top, batch_begin, batch_tiles, heads_at_once, {}};
      first_tile += cut.num_tiles;
    }
  }
  plan.num_forward_tiles = first_tile;
}

// Tasks with queries and keys. A later key tile is seen by fewer of the tasks over its run, and
// adds to dQ after the earlier ones. With the tasks that reach furthest first it walks the same way
// as the tile before it, one step behind, and stops earlier; in any other order it would wait where
// it skips a task.
PlannedTask* PlanTasksThatReachFurthestFirst(Scratch& scratch, SoftmaxAttentionPlan& plan) {
  const std::vector<PlannedTask>& listed = scratch.listed;
  scratch.order.Reserve(listed.size());
  for (size_t t = 0; t < listed.size(); ++t) {
    if (listed[t].kv_len == 0) continue;
    const int64_t end = int64_t{listed[t].kv_begin} + listed[t].kv_len;
    scratch.order.Add(static_cast<uint64_t>((int64_t{1} << 31) - end), static_cast<int32_t>(t));
  }
  const std::vector<RadixOrder::Item>& sorted = scratch.order.Sort();
  auto* const tasks = Extend<PlannedTask>(plan.bytes, sorted.size());
  for (size_t i = 0; i < sorted.size(); ++i) tasks[i] = listed[sorted[i].index];
  plan.num_tasks = static_cast<int64_t>(sorted.size());
  return tasks;
}

// Query rows that see keys of a tile, summed over the `count` tiles from `first_row` on.
int64_t RowsOverTiles(const PlannedTask& task, int32_t first_row, int32_t count, int32_t rows) {
  // Key j is hidden from the queries before j + 1 - visible: from none in the first tiles, then
  // from `rows` more a tile, until only the last query is left.
  const int32_t hidden = first_row - task.kv_begin + 1 - task.visible;
  const int32_t most = task.q_len - 1;
  const int64_t all = int64_t{count} * task.q_len;
  if (hidden + (int64_t{count} - 1) * rows <= 0) return all;
  const int32_t begin = hidden > 0 ? 0 : -hidden / rows + 1;
  const int32_t end = std::clamp(CeilDiv(most - hidden, rows), begin, count);
  const int64_t between = end - begin;
  return all - between * hidden - rows * ((int64_t{begin} + end - 1) * between / 2) -
         int64_t{count - end} * most;
}

// Merges the tasks' key ranges that overlap. Tiles never reach across two runs, so documents laid
// end to end do not wait for one another. Runs come from the last to the first, as the tasks do.
void FindKeyRuns(PlannedTask* tasks, int32_t num_tasks, const SoftmaxAttentionTiling& tiling,
                 int group, std::vector<KeyRunWork>& runs) {
  const int32_t rows = tiling.backward_keys;
  runs.clear();
  for (int32_t begin = 0, end = 0; begin < num_tasks; begin = end) {
    KeyRun run = {};
    run.kv_begin = tasks[begin].kv_begin;
    run.kv_end = run.kv_begin + tasks[begin].kv_len;
    for (; end < num_tasks && tasks[end].kv_begin + tasks[end].kv_len > run.kv_begin; ++end) {
      run.kv_begin = std::min(run.kv_begin, tasks[end].kv_begin);
    }
    run.task_begin = begin;
    run.task_end = end;
    run.num_tiles = CeilDiv(run.kv_end - run.kv_begin, rows);
    int64_t sum = 0;
    for (int32_t t = begin; t < end; ++t) {
      PlannedTask& task = tasks[t];
      const int32_t first_row = run.kv_begin + (task.kv_begin - run.kv_begin) / rows * rows;
      task.first_key_tile_row = first_row;
      sum += RowsOverTiles(task, first_row, CeilDiv(task.kv_begin + task.kv_len - first_row, rows),
                           rows);
    }
    const int64_t count = run.num_tiles;
    const int64_t steps = CeilDiv<int64_t>(sum, count * tiling.backward_queries) * group;
    runs.push_back({run, sum, std::min({count, steps, std::max<int64_t>(steps / 8, 8)})});
  }
}

// Puts the runs in the order of work and in batches. The tiles of one run add to dQ of the same
// queries, one after the other. Close together they find it in the L2 cache; but too many at once,
// for the few steps that each of them takes, only wait for their turns. So runs, those with most to
// do first, are taken in batches just large enough to keep the GPU busy without waiting, one
// key/value head after the other if one will do; the tiles of a batch are merged, so that its runs
// end together.
void PlanKeyRuns(Scratch& scratch, SoftmaxAttentionPlan& plan) {
  const std::vector<KeyRunWork>& work = scratch.runs;
  scratch.order.Reserve(work.size());
  for (size_t i = work.size(); i > 0; --i) {
    scratch.order.Add(~static_cast<uint64_t>(work[i - 1].rows), static_cast<int32_t>(i - 1));
  }
  const std::vector<RadixOrder::Item>& sorted = scratch.order.Sort();
  auto* const runs = Extend<KeyRun>(plan.bytes, work.size());
  plan.num_runs = static_cast<int64_t>(work.size());
  const auto num_runs = static_cast<int32_t>(work.size());
  std::vector<KeyBatch> batches;
  int32_t first_tile = 0;
  for (int32_t i = 0; i < num_runs;) {
    KeyBatch batch = {};
    batch.first_run = i;
    batch.first_tile = first_tile;
    int64_t at_once = 0;
    for (; i < num_runs && at_once < kBlocksAtOnce; ++i) {
      const KeyRunWork& next = work[sorted[i].index];
      runs[i] = next.run;
      runs[i].first_tile = first_tile;
      runs[i].batch = static_cast<int32_t>(batches.size());
      at_once += next.at_once;
      first_tile += next.run.num_tiles;
      batch.longest = std::max(batch.longest, next.run.num_tiles);
    }
    batch.end_run = i;
    batch.num_tiles = first_tile - batch.first_tile;
    batch.heads_at_once = static_cast<int32_t>(CeilDiv<int64_t>(kBlocksAtOnce, at_once));
    batches.push_back(batch);
  }
  std::copy(batches.begin(), batches.end(), Extend<KeyBatch>(plan.bytes, batches.size()));
  plan.num_batches = static_cast<int64_t>(batches.size());
  plan.num_key_tiles = first_tile;
}

}  // namespace

SoftmaxAttentionTiling TilingOf(int head_dim) {
  if (head_dim <= 64) return {128, 128, 128};
  if (head_dim <= 128) return {128, 64, 128};
  return {128, 64, 64};
}

SoftmaxAttentionPlan PlanSoftmaxAttention(const AttentionTask* tasks, int64_t num_tasks,
                                          const SoftmaxAttentionTiling& tiling, int group,
                                          bool backward) {
  // Memory alone, nothing of an earlier plan. A plan that took its own would pay as much again for
  // pages fresh from the system (docs/kernels.md). A thread's, as ops are functions of an
  // OpContext, of which nothing above runtime/ lives as long as a run: each caller would have to
  // bring it. It is as large as the longest list of tasks wants it, a few KiB a task at most,
  // until the thread ends.
  thread_local Scratch scratch;
  SoftmaxAttentionPlan plan;
  plan.tiling = tiling;
  plan.bytes.reserve(static_cast<size_t>(num_tasks) * 5 * 32);  // one of each kind for a task
  const int64_t num_query_tiles =
      ListTasks(tasks, num_tasks, tiling.backward_queries, scratch.listed);
  const std::vector<PlannedTask>& listed = scratch.listed;
  std::copy(listed.begin(), listed.end(), Extend<PlannedTask>(plan.bytes, listed.size()));
  plan.num_listed = static_cast<int64_t>(listed.size());
  PlanForward(tiling.forward_queries, group, scratch, plan);
  if (!backward) return plan;
  plan.num_query_tiles = num_query_tiles;
  PlannedTask* const planned = PlanTasksThatReachFurthestFirst(scratch, plan);
  FindKeyRuns(planned, static_cast<int32_t>(plan.num_tasks), tiling, group, scratch.runs);
  PlanKeyRuns(scratch, plan);
  return plan;
}

}  // namespace evenkeel
