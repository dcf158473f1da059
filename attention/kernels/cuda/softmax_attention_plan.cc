#include "attention/kernels/cuda/softmax_attention_plan.h"

#include <algorithm>
#include <array>
#include <bit>

#include "attention/kernels/cuda/radix_order.h"
#include "attention/kernels/cuda/softmax_plan_tiles.h"

namespace evenkeel {
namespace {

// Lengths that the forward pass tells apart: of batches, and of the tiles of one. So many that
// blocks end together.
constexpr int32_t kBuckets = 64;

// Blocks that run at the same time, about: plans do not ask the GPU. (An H100
// runs 132; a power of two suits the numbers of tiles.)
constexpr int32_t kBlocksAtOnce = 128;

template <typename T>
constexpr T CeilDiv(T a, T b) {
  return (a + b - 1) / b;
}

// Tasks whose keys begin at the same row: [begin, end) in the order of first keys.
struct KeyGroup {
  int32_t begin;
  int32_t end;
  int32_t keys;    // that the tile with the most sees
  int32_t bucket;  // 0 has the most keys
};

// Query tiles [top - num_tiles + 1, top] of a task, whose numbers of keys are of one bucket.
struct QueryCut {
  int32_t bucket;  // 0 has the most keys
  int32_t task;
  int32_t top;
  int32_t num_tiles;
};

// A run of keys, and how much there is to do.
struct KeyRunWork {
  KeyRun run;
  int64_t rows;     // of queries, summed over the tiles
  int64_t at_once;  // tiles to work on at the same time
};

// What a plan works with; PlanSoftmaxAttention says how long it lives.
struct Scratch {
  std::vector<PlannedTask> listed;
  RadixOrder order;
  std::vector<KeyGroup> groups, sorted_groups;
  std::vector<QueryCut> cuts, sorted_cuts;
  std::vector<QueryStretch> stretches;
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

// Keys that the last query of a task sees, which are the most.
int32_t MostKeys(const PlannedTask& task) {
  return QueryTileAt(task, 0, task.q_len).num_keys;
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
    cuts.push_back({kBuckets - steps, index, top, top - last + 1});
    if (last == 0) return;
    top = last - 1;
    // Counted down, not divided: so one division need not wait for the one before it.
    const int32_t num_keys = QueryTileAt(task, top * rows, rows).num_keys;
    while (num_keys < steps * width) --steps;
  }
}

// Puts elements in the order of their buckets; equals stay in order.
template <typename T>
void SortByBucket(const std::vector<T>& elements, std::vector<T>& sorted) {
  std::array<int32_t, kBuckets + 2> begins = {};
  for (const T& element : elements) ++begins[element.bucket + 1];
  for (size_t b = 1; b < begins.size(); ++b) begins[b] += begins[b - 1];
  sorted.resize(elements.size());
  for (const T& element : elements) sorted[begins[element.bucket]++] = element;
}

// Groups of tasks by their first key, in the order of that.
void FindKeyGroups(Scratch& scratch) {
  const std::vector<PlannedTask>& listed = scratch.listed;
  scratch.order.Reserve(listed.size());
  for (size_t t = 0; t < listed.size(); ++t) {
    scratch.order.Add(static_cast<uint64_t>(listed[t].kv_begin), static_cast<int32_t>(t));
  }
  const std::vector<RadixOrder::Item>& sorted = scratch.order.Sort();
  scratch.groups.clear();
  const auto count = static_cast<int32_t>(sorted.size());
  int32_t most = 0;
  for (int32_t begin = 0, end = 0; begin < count; begin = end) {
    int32_t keys = 0;
    for (; end < count && sorted[end].key == sorted[begin].key; ++end) {
      keys = std::max(keys, MostKeys(listed[sorted[end].index]));
    }
    scratch.groups.push_back({begin, end, keys, 0});
    most = std::max(most, keys);
  }
  const int32_t width = most / kBuckets + 1;
  for (KeyGroup& group : scratch.groups) group.bucket = kBuckets - group.keys / width;
}

// Forward tiles come in batches whose keys and values the L2 cache holds, as many heads of them at
// a time as it holds: with the tiles of all documents and heads in one order by length, each would
// read its keys and values from memory, which costs more energy than time (docs/kernels.md). The
// batches with the most keys come first, and in a batch the tiles with the most, so that all blocks
// end together. Of tiles of one bucket those of the document with the most keys come first, then
// those of the earlier task of the list, of its tiles the last.
void PlanForward(const SoftmaxAttentionTiling& tiling, Scratch& scratch,
                 SoftmaxAttentionPlan& plan) {
  const std::vector<PlannedTask>& listed = scratch.listed;
  const int32_t rows = tiling.forward_queries;
  FindKeyGroups(scratch);
  SortByBucket(scratch.groups, scratch.sorted_groups);
  const std::vector<KeyGroup>& groups = scratch.sorted_groups;
  const auto task_at = [&](int32_t place) { return scratch.order.items()[place].index; };
  scratch.stretches.clear();
  int32_t first_tile = 0;
  for (size_t begin = 0, end = 0; begin < groups.size(); begin = end) {
    int32_t most = groups[begin].keys;
    int64_t keys = most;
    for (end = begin + 1; end < groups.size(); ++end) {
      if (keys + groups[end].keys > tiling.cached_keys) break;
      keys += groups[end].keys;
      most = std::max(most, groups[end].keys);
    }
    scratch.cuts.clear();
    if (end - begin == 1 && groups[begin].end - groups[begin].begin == 1) {
      // A task alone: its tiles are in order.
      const int32_t index = task_at(groups[begin].begin);
      const int32_t count = CeilDiv(listed[index].q_len, rows);
      scratch.cuts.push_back({0, index, count - 1, count});
    } else {
      const int32_t width = most / kBuckets + 1;
      for (size_t g = begin; g < end; ++g) {
        for (int32_t place = groups[g].begin; place < groups[g].end; ++place) {
          CutTask(listed[task_at(place)], task_at(place), rows, width, scratch.cuts);
        }
      }
      SortByBucket(scratch.cuts, scratch.sorted_cuts);
      scratch.cuts.swap(scratch.sorted_cuts);
    }
    QueryStretch stretch = {};
    stretch.batch_begin = first_tile;
    for (const QueryCut& cut : scratch.cuts) stretch.batch_tiles += cut.num_tiles;
    const int64_t heads = tiling.cached_keys / std::max<int64_t>(keys, 1);
    stretch.heads_at_once =
        std::bit_floor(static_cast<uint32_t>(std::clamp<int64_t>(heads, 1, kBlocksAtOnce)));
    for (const QueryCut& cut : scratch.cuts) {
      stretch.first_tile = first_tile;
      stretch.task = cut.task;
      stretch.top = cut.top;
      scratch.stretches.push_back(stretch);
      first_tile += cut.num_tiles;
    }
  }
  plan.num_forward_tiles = first_tile;
  plan.num_stretches = static_cast<int64_t>(scratch.stretches.size());
  std::copy(scratch.stretches.begin(), scratch.stretches.end(),
            Extend<QueryStretch>(plan.bytes, scratch.stretches.size()));
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

// Tiles of a run to work on at the same time, `steps` of each. Each follows the one before it in
// every query tile, so it is idle for some steps at its beginning; but the more there are, the
// sooner each comes to the queries that the others have brought into the L2 cache. An eighth of the
// steps is fastest for whole documents, whose later tiles take fewer; half for tiles that all see
// the same queries, and for tiles of few keys, which read twice as much for a product; and 8 where
// there are as many (docs/kernels.md).
int64_t TilesAtOnce(int64_t count, int64_t steps, bool see_the_same, int32_t rows) {
  const int64_t share = see_the_same || rows < 128 ? 2 : 8;
  return std::min({count, steps, std::max<int64_t>(steps / share, 8)});
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
    int64_t sum = 0, queries = 0;
    for (int32_t t = begin; t < end; ++t) {
      PlannedTask& task = tasks[t];
      queries += task.q_len;
      const int32_t first_row = run.kv_begin + (task.kv_begin - run.kv_begin) / rows * rows;
      task.first_key_tile_row = first_row;
      sum += RowsOverTiles(task, first_row, CeilDiv(task.kv_begin + task.kv_len - first_row, rows),
                           rows);
    }
    const int64_t count = run.num_tiles;
    const int64_t steps = CeilDiv<int64_t>(sum, count * tiling.backward_queries) * group;
    const bool see_the_same = 4 * sum >= 3 * count * queries;
    runs.push_back({run, sum, TilesAtOnce(count, steps, see_the_same, rows)});
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
  // Of 16 MiB: each half of an H100's L2 cache holds 25, and there has to be room for the next
  // batch, queries and outputs. From 4 to 32 MiB it makes no difference of more than 3 %
  // (docs/kernels.md).
  constexpr int kCachedBytes = 1 << 24;
  if (head_dim <= 64) return {128, 128, 128, kCachedBytes / (64 * 4)};
  if (head_dim <= 128) return {128, 64, 128, kCachedBytes / (128 * 4)};
  return {128, 64, 64, kCachedBytes / (256 * 4)};
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
  PlanForward(tiling, scratch, plan);
  if (!backward) return plan;
  plan.num_query_tiles = num_query_tiles;
  PlannedTask* const planned = PlanTasksThatReachFurthestFirst(scratch, plan);
  FindKeyRuns(planned, static_cast<int32_t>(plan.num_tasks), tiling, group, scratch.runs);
  PlanKeyRuns(scratch, plan);
  return plan;
}

}  // namespace evenkeel
