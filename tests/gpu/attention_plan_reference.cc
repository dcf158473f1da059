#include "tests/gpu/attention_plan_reference.h"

#include <algorithm>
#include <map>
#include <numeric>

namespace evenkeel {
namespace {

// Lengths that a batch of the forward pass tells apart.
constexpr int64_t kBuckets = 64;

// Blocks that run at the same time, about: plans do not ask the GPU. (An H100
// runs 132; a power of two suits the numbers of tiles.)
constexpr int64_t kBlocksAtOnce = 128;

int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

QueryTile TileAt(const AttentionTask& task, int64_t row, int64_t rows) {
  const int64_t offset = DiagonalOffset(task);
  const int64_t count = std::min(rows, task.q_len - row);
  return {static_cast<int32_t>(task.q_begin + row),
          static_cast<int32_t>(count),
          static_cast<int32_t>(task.kv_begin),
          static_cast<int32_t>(offset + row + 1),
          static_cast<int32_t>(std::clamp<int64_t>(offset + row + count, 0, task.kv_len)),
          0,
          0,
          0};
}

// Documents, which is to say tasks with the same first key, the longest first, in batches of as
// many keys as the cache holds of one head, or of one document that has more. The tiles of a batch
// come by length, the longest first, in as many heads at a time as the cache holds.
std::vector<QueryTile> ForwardTiles(const AttentionTask* tasks, int64_t num_tasks,
                                    const SoftmaxAttentionTiling& tiling) {
  struct Document {
    int64_t most = 0;  // keys
    std::vector<QueryTile> tiles;
  };
  const int rows = tiling.forward_queries;
  std::map<int64_t, Document> by_first_key;
  for (int64_t t = 0; t < num_tasks; ++t) {
    for (int64_t i = CeilDiv(tasks[t].q_len, rows) - 1; i >= 0; --i) {
      Document& document = by_first_key[tasks[t].kv_begin];
      document.tiles.push_back(TileAt(tasks[t], i * rows, rows));
      document.most = std::max<int64_t>(document.most, document.tiles.back().num_keys);
    }
  }
  std::vector<const Document*> documents;
  for (const auto& [first_key, document] : by_first_key) documents.push_back(&document);
  int64_t longest = 0;
  for (const Document* document : documents) longest = std::max(longest, document->most);
  const auto longer = [&](const Document* a, const Document* b) {
    return a->most / (longest / kBuckets + 1) > b->most / (longest / kBuckets + 1);
  };
  std::stable_sort(documents.begin(), documents.end(), longer);

  std::vector<QueryTile> tiles;
  for (size_t d = 0; d < documents.size();) {
    const size_t begin = tiles.size();
    int64_t keys = 0, most = 0;
    do {
      keys += documents[d]->most;
      most = std::max(most, documents[d]->most);
      tiles.insert(tiles.end(), documents[d]->tiles.begin(), documents[d]->tiles.end());
      ++d;
    } while (d < documents.size() && keys + documents[d]->most <= tiling.cached_keys);
    const int64_t width = most / kBuckets + 1;
    std::stable_sort(tiles.begin() + static_cast<int64_t>(begin), tiles.end(),
                     [&](const QueryTile& a, const QueryTile& b) {
                       return a.num_keys / width > b.num_keys / width;
                     });
    int64_t heads = 1;
    while (heads < kBlocksAtOnce && heads * 2 * keys <= tiling.cached_keys) heads *= 2;
    for (size_t i = begin; i < tiles.size(); ++i) {
      tiles[i].batch_begin = static_cast<int32_t>(begin);
      tiles[i].batch_tiles = static_cast<int32_t>(tiles.size() - begin);
      tiles[i].heads_at_once = static_cast<int32_t>(heads);
    }
  }
  return tiles;
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
    // The number of its first tile, for KeyTiles alone.
    task.unused = static_cast<int32_t>(run.first_tile + (begin - run.begin) / tile_rows);
  }
  return runs;
}

// A run's tiles, and how much there is to do.
struct KeyRunWork {
  int64_t first_tile;
  int64_t num_tiles;
  int64_t rows;  // of queries, summed over the tiles
  // Tiles to work on at the same time. Each follows the one before it in every query tile, so it is
  // idle for some steps at its beginning: an eighth of the steps that each takes, but 8 where there
  // are as many, measured fastest (docs/kernels.md).
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
    const int64_t first = task.unused;
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
    int64_t queries = 0;
    for (const PlannedTask& task : tasks) {
      if (task.unused >= run.first_tile && task.unused < run.first_tile + count) {
        queries += task.q_len;
      }
    }
    const bool by_half = rows < 128 || 4 * sum >= 3 * count * queries;
    const int64_t at_once = std::max<int64_t>(steps / (by_half ? 2 : 8), 8);
    work.push_back({run.first_tile, count, sum, std::min({count, steps, at_once}), 0});
  }
  return OrderKeyTiles(tiles, work);
}

}  // namespace

ReferencePlan PlanTileByTile(const std::vector<AttentionTask>& tasks,
                             const SoftmaxAttentionTiling& tiling, int group) {
  ReferencePlan plan;
  plan.forward_tiles = ForwardTiles(tasks.data(), static_cast<int64_t>(tasks.size()), tiling);
  for (const AttentionTask& task : tasks) {
    if (task.q_len > 0 && task.kv_len > 0) {
      plan.tasks.push_back({static_cast<int32_t>(task.q_begin), static_cast<int32_t>(task.q_len),
                            static_cast<int32_t>(task.kv_begin), static_cast<int32_t>(task.kv_len),
                            static_cast<int32_t>(DiagonalOffset(task) + 1),
                            static_cast<int32_t>(plan.query_tiles.size()), 0, 0});
    }
    for (int64_t row = 0; row < task.q_len; row += tiling.backward_queries) {
      plan.query_tiles.push_back(TileAt(task, row, tiling.backward_queries));
    }
  }
  std::stable_sort(plan.tasks.begin(), plan.tasks.end(),
                   [](const PlannedTask& a, const PlannedTask& b) {
                     return a.kv_begin + a.kv_len > b.kv_begin + b.kv_len;
                   });
  plan.key_tiles = KeyTiles(plan.tasks, tiling, group);
  for (PlannedTask& task : plan.tasks) task.unused = 0;
  return plan;
}

}  // namespace evenkeel
