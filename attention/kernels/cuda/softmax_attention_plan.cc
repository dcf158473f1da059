#include "attention/kernels/cuda/softmax_attention_plan.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace evenkeel {
namespace {

constexpr int64_t kBuckets = 1024;

// Blocks of the backward pass that run at the same time, about: plans do not ask the GPU. (An H100
// runs 132; a power of two suits the numbers of tiles.)
constexpr int64_t kBlocksAtOnce = 128;

int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Writes the order of items by descending weight (>= 0) to `order`, equal buckets in their old
// order. A counting sort: planning a launch must cost microseconds.
void OrderByWeight(const std::vector<int64_t>& weights, std::vector<int32_t>& order) {
  const int64_t most = weights.empty() ? 0 : *std::max_element(weights.begin(), weights.end());
  const int64_t width = most / kBuckets + 1;
  std::vector<int32_t> starts(kBuckets + 1, 0);
  for (const int64_t weight : weights) ++starts[kBuckets - weight / width];
  std::exclusive_scan(starts.begin(), starts.end(), starts.begin(), 0);
  order.resize(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    order[starts[kBuckets - weights[i] / width]++] = static_cast<int32_t>(i);
  }
}

void AppendQueryTiles(const AttentionTask& task, int rows, std::vector<QueryTile>& tiles) {
  const int64_t offset = DiagonalOffset(task);
  for (int64_t i = 0; i < task.q_len; i += rows) {
    const int64_t count = std::min<int64_t>(rows, task.q_len - i);
    tiles.push_back({static_cast<int32_t>(task.q_begin + i),
                     static_cast<int32_t>(count),
                     static_cast<int32_t>(task.kv_begin),
                     static_cast<int32_t>(offset + i + 1),
                     static_cast<int32_t>(std::clamp<int64_t>(offset + i + count, 0, task.kv_len)),
                     {0, 0, 0}});
  }
}

std::vector<QueryTile> ForwardTiles(const AttentionTask* tasks, int64_t num_tasks, int rows) {
  std::vector<QueryTile> tiles;
  int64_t count = 0;
  for (int64_t t = 0; t < num_tasks; ++t) count += CeilDiv(tasks[t].q_len, rows);
  tiles.reserve(count);
  for (int64_t t = 0; t < num_tasks; ++t) AppendQueryTiles(tasks[t], rows, tiles);
  std::vector<int64_t> weights(tiles.size());
  for (size_t i = 0; i < tiles.size(); ++i) {
    weights[i] = tiles[i].num_keys;
  }
  std::vector<int32_t> order;
  OrderByWeight(weights, order);
  std::vector<QueryTile> sorted(tiles.size());
  for (size_t i = 0; i < order.size(); ++i) sorted[i] = tiles[order[i]];
  return sorted;
}

struct KeyRun {
  int64_t begin;
  int64_t end;
  int64_t first_tile;
};

// Merges the tasks' key ranges that overlap. Tiles never reach across two runs, so documents laid
// end to end do not wait for one another.
std::vector<KeyRun> KeyRuns(std::vector<PlannedTask>& tasks, int tile_rows) {
  std::vector<int32_t> by_begin(tasks.size());
  std::iota(by_begin.begin(), by_begin.end(), 0);
  const auto earlier = [&](int32_t a, int32_t b) { return tasks[a].kv_begin < tasks[b].kv_begin; };
  if (!std::is_sorted(by_begin.begin(), by_begin.end(), earlier)) {
    std::stable_sort(by_begin.begin(), by_begin.end(), earlier);
  }
  std::vector<KeyRun> runs;
  for (const int32_t index : by_begin) {
    PlannedTask& task = tasks[index];
    const int64_t begin = task.kv_begin, end = begin + task.kv_len;
    if (runs.empty() || begin >= runs.back().end) {
      const int64_t first_tile =
          runs.empty()
              ? 0
              : runs.back().first_tile + CeilDiv(runs.back().end - runs.back().begin, tile_rows);
      runs.push_back({begin, end, first_tile});
    }
    KeyRun& run = runs.back();
    run.end = std::max(run.end, end);
    task.first_key_tile_row =
        static_cast<int32_t>(run.begin + (begin - run.begin) / tile_rows * tile_rows);
    task.first_key_tile = static_cast<int32_t>(run.first_tile + (begin - run.begin) / tile_rows);
  }
  return runs;
}

// A run's tiles, and how much there is to do.
struct KeyRunWork {
  int64_t first_tile;
  int64_t num_tiles;
  int64_t rows;  // of queries, summed over the tiles
  // Tiles at work at the same time that need not wait for one another: a contribution to dQ follows
  // the one before it after a good half of a step, so as many as each takes steps.
  int64_t at_once;
  int64_t progress;  // while the run is merged with others
};

// Sorts the tiles as blocks are to take them. The tiles of one run add to dQ of the same queries,
// one after the other. Close together they find it in the L2 cache; but too many at once, for the
// few steps that each of them takes, only wait for their turns. So runs, those with most to do
// first, are taken in batches just large enough to keep the GPU busy without waiting, one key/value
// head after the other if one will do; the tiles of a batch are merged, so that its runs end
// together.
std::vector<KeyTile> OrderKeyTiles(const std::vector<KeyTile>& tiles,
                                   std::vector<KeyRunWork>& runs) {
  std::stable_sort(runs.begin(), runs.end(),
                   [](const KeyRunWork& a, const KeyRunWork& b) { return a.rows > b.rows; });
  std::vector<KeyTile> sorted;
  sorted.reserve(tiles.size());
  for (size_t begin = 0, end = 0; begin < runs.size(); begin = end) {
    int64_t at_once = 0, longest = 0, count = 0;
    while (end < runs.size() && at_once < kBlocksAtOnce) {
      at_once += runs[end].at_once;
      longest = std::max(longest, runs[end].num_tiles);
      count += runs[end++].num_tiles;
    }
    const auto batch_begin = static_cast<int32_t>(sorted.size());
    const auto heads_at_once = static_cast<int32_t>(CeilDiv(kBlocksAtOnce, at_once));
    for (int64_t round = 0; round < longest; ++round) {
      for (size_t i = begin; i < end; ++i) {
        KeyRunWork& run = runs[i];
        // Tile t comes in the first round with (round + 1) num_tiles >= (t + 1) longest.
        run.progress += run.num_tiles;
        if (run.progress < longest) continue;
        run.progress -= longest;
        KeyTile& tile = sorted.emplace_back(tiles[run.first_tile++]);
        tile.batch_begin = batch_begin;
        tile.batch_tiles = static_cast<int32_t>(count);
        tile.heads_at_once = heads_at_once;
      }
    }
  }
  return sorted;
}

std::vector<KeyTile> KeyTiles(std::vector<PlannedTask>& tasks, const SoftmaxAttentionTiling& tiling,
                              int group) {
  const int rows = tiling.backward_keys;
  const std::vector<KeyRun> runs = KeyRuns(tasks, rows);
  std::vector<KeyTile> tiles;
  if (!runs.empty()) {
    tiles.reserve(runs.back().first_tile + CeilDiv(runs.back().end - runs.back().begin, rows));
  }
  for (const KeyRun& run : runs) {
    for (int64_t row = run.begin; row < run.end; row += rows) {
      tiles.push_back({static_cast<int32_t>(row),
                       static_cast<int32_t>(std::min<int64_t>(rows, run.end - row)), INT32_MAX, 0,
                       0, 0, 0, 0});
    }
  }
  std::vector<int64_t> weights(tiles.size(), 0);
  for (size_t t = 0; t < tasks.size(); ++t) {
    const PlannedTask& task = tasks[t];
    const int64_t first = task.first_key_tile;
    const int64_t end =
        first + CeilDiv(task.kv_begin + task.kv_len - task.first_key_tile_row, rows);
    for (int64_t i = first; i < end; ++i) {
      tiles[i].task_begin = std::min(tiles[i].task_begin, static_cast<int32_t>(t));
      tiles[i].task_end = static_cast<int32_t>(t) + 1;
      // Key j is hidden from the queries before j + 1 - visible.
      const int64_t hidden = tiles[i].kv_begin - task.kv_begin + 1 - task.visible;
      weights[i] += task.q_len - std::clamp<int64_t>(hidden, 0, task.q_len - 1);
    }
  }
  std::vector<KeyRunWork> work;
  work.reserve(runs.size());
  for (const KeyRun& run : runs) {
    const int64_t count = CeilDiv(run.end - run.begin, rows);
    int64_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += weights[run.first_tile + i];
    const int64_t steps = CeilDiv(sum, count * tiling.backward_queries) * group;
    work.push_back({run.first_tile, count, sum, std::min(count, steps), 0});
  }
  return OrderKeyTiles(tiles, work);
}

template <typename T>
void Append(const std::vector<T>& items, std::vector<std::byte>& bytes) {
  static_assert(sizeof(T) % 16 == 0);
  const size_t at = bytes.size();
  bytes.resize(at + items.size() * sizeof(T));
  if (!items.empty()) std::memcpy(bytes.data() + at, items.data(), items.size() * sizeof(T));
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
  SoftmaxAttentionPlan plan;
  plan.tiling = tiling;
  const std::vector<QueryTile> forward_tiles =
      ForwardTiles(tasks, num_tasks, tiling.forward_queries);
  plan.num_forward_tiles = static_cast<int64_t>(forward_tiles.size());
  Append(forward_tiles, plan.bytes);
  if (!backward) return plan;

  std::vector<QueryTile> query_tiles;
  std::vector<PlannedTask> planned;
  for (int64_t t = 0; t < num_tasks; ++t) {
    const AttentionTask& task = tasks[t];
    if (task.q_len > 0 && task.kv_len > 0) {
      planned.push_back({static_cast<int32_t>(task.q_begin), static_cast<int32_t>(task.q_len),
                         static_cast<int32_t>(task.kv_begin), static_cast<int32_t>(task.kv_len),
                         static_cast<int32_t>(DiagonalOffset(task) + 1),
                         static_cast<int32_t>(query_tiles.size()), 0, 0});
    }
    AppendQueryTiles(task, tiling.backward_queries, query_tiles);
  }
  // A later key tile is seen by fewer of the tasks over its run, and adds to dQ after the earlier
  // ones. With the tasks that reach furthest first it walks the same way as the tile before it, one
  // step behind, and stops earlier; in any other order it would wait where it skips a task.
  std::stable_sort(planned.begin(), planned.end(), [](const PlannedTask& a, const PlannedTask& b) {
    return a.kv_begin + a.kv_len > b.kv_begin + b.kv_len;
  });
  const std::vector<KeyTile> key_tiles = KeyTiles(planned, tiling, group);
  plan.num_query_tiles = static_cast<int64_t>(query_tiles.size());
  plan.num_key_tiles = static_cast<int64_t>(key_tiles.size());
  plan.num_tasks = static_cast<int64_t>(planned.size());
  Append(query_tiles, plan.bytes);
  Append(key_tiles, plan.bytes);
  Append(planned, plan.bytes);
  return plan;
}

SoftmaxAttentionPlanView ViewOf(const SoftmaxAttentionPlan& plan, const void* bytes) {
  SoftmaxAttentionPlanView view;
  view.tiling = plan.tiling;
  view.num_forward_tiles = plan.num_forward_tiles;
  view.num_query_tiles = plan.num_query_tiles;
  view.num_key_tiles = plan.num_key_tiles;
  view.num_tasks = plan.num_tasks;
  view.forward_tiles = static_cast<const QueryTile*>(bytes);
  view.query_tiles = view.forward_tiles + plan.num_forward_tiles;
  view.key_tiles = reinterpret_cast<const KeyTile*>(view.query_tiles + plan.num_query_tiles);
  view.tasks = reinterpret_cast<const PlannedTask*>(view.key_tiles + plan.num_key_tiles);
  return view;
}

}  // namespace evenkeel
