#include "attention/kernels/cuda/softmax_attention_plan.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace evenkeel {
namespace {

constexpr int64_t kBuckets = 1024;

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

std::vector<KeyTile> KeyTiles(std::vector<PlannedTask>& tasks, int rows) {
  const std::vector<KeyRun> runs = KeyRuns(tasks, rows);
  std::vector<KeyTile> tiles;
  if (!runs.empty()) {
    tiles.reserve(runs.back().first_tile + CeilDiv(runs.back().end - runs.back().begin, rows));
  }
  for (const KeyRun& run : runs) {
    for (int64_t row = run.begin; row < run.end; row += rows) {
      tiles.push_back({static_cast<int32_t>(row),
                       static_cast<int32_t>(std::min<int64_t>(rows, run.end - row)), INT32_MAX, 0});
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
  // The kernel adds to a query's gradient in ascending key order and waits for its turn, so within
  // a run an earlier tile must never be started later: its weight counts as at least its
  // successor's.
  for (const KeyRun& run : runs) {
    const int64_t end = run.first_tile + CeilDiv(run.end - run.begin, rows);
    for (int64_t i = end - 2; i >= run.first_tile; --i) {
      weights[i] = std::max(weights[i], weights[i + 1]);
    }
  }
  std::vector<int32_t> order;
  OrderByWeight(weights, order);
  std::vector<KeyTile> sorted(tiles.size());
  for (size_t i = 0; i < order.size(); ++i) sorted[i] = tiles[order[i]];
  return sorted;
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
                                          const SoftmaxAttentionTiling& tiling, bool backward) {
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
  const std::vector<KeyTile> key_tiles = KeyTiles(planned, tiling.backward_keys);
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
