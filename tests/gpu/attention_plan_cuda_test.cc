#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "attention/kernels/cuda/lightning_attention_plan.h"
#include "attention/kernels/cuda/relu_attention_plan.h"
#include "attention/kernels/cuda/softmax_attention_plan.h"
#include "tests/gpu/plan_on_host.h"

namespace evenkeel {
namespace {

// Documents end to end, some of them cut into shards that share their document's keys; some tasks
// are ahead of their keys, up to rectangles.
std::vector<AttentionTask> RandomTasks(std::mt19937& rng, int documents, int longest) {
  std::vector<AttentionTask> tasks;
  int64_t row = 0, key = 0;
  for (int d = 0; d < documents; ++d) {
    const int64_t length = rng() % longest;
    const int64_t shard = rng() % 2 == 0 ? std::max<int64_t>(length, 1) : 1 + rng() % 200;
    for (int64_t begin = 0; begin < length; begin += shard) {
      const int64_t rows = std::min(shard, length - begin);
      tasks.push_back({row + begin, rows, key, begin + rows});
      if (rng() % 3 == 0) {
        tasks.back().kv_len -= rng() % tasks.back().kv_len;
        tasks.back().q_ahead = rng() % 2 == 0 ? rng() % 300 : int64_t{1} << 50;
      }
    }
    row += length;
    key += length;
  }
  std::shuffle(tasks.begin(), tasks.end(), rng);
  return tasks;
}

// Keys that query i sees, which is kv_len + q_ahead - q_len + i positions past the first.
int64_t NumKeysSeen(const AttentionTask& task, int64_t i) {
  int64_t seen = 0;
  while (seen < task.kv_len && seen <= task.kv_len + task.q_ahead - task.q_len + i) ++seen;
  return seen;
}

TEST(SoftmaxAttentionPlanTest, ForwardTilesCoverEveryQueryOnceAndStartWithTheLongest) {
  std::mt19937 rng(1);
  for (int round = 0; round < 20; ++round) {
    const std::vector<AttentionTask> tasks = RandomTasks(rng, 12, 700);
    const PlanOnHost planned(tasks, TilingOf(128), 1, false);
    const SoftmaxAttentionPlanView& view = planned.view;
    std::map<int64_t, std::pair<int64_t, int64_t>> visible_of_row;  // row -> (kv_begin, keys)
    int64_t longest = 0, most = 0;
    for (int64_t i = 0; i < view.num_forward_tiles; ++i) {
      const QueryTile& tile = view.forward_tiles[i];
      ASSERT_GT(tile.q_rows, 0);
      ASSERT_LE(tile.q_rows, view.tiling.forward_queries);
      if (tile.batch_begin == i) longest = most = tile.num_keys;
      EXPECT_LE(tile.num_keys, most + longest / 64 + 1);  // within a bucket of the batch
      most = std::min<int64_t>(most, tile.num_keys);
      for (int r = 0; r < tile.q_rows; ++r) {
        const int64_t keys = std::clamp(tile.visible + r, 0, tile.num_keys);
        EXPECT_TRUE(visible_of_row.insert({tile.q_begin + r, {tile.kv_begin, keys}}).second);
      }
    }
    size_t rows = 0;
    for (const AttentionTask& task : tasks) {
      rows += task.q_len;
      for (int64_t i = 0; i < task.q_len; ++i) {
        const auto found = visible_of_row.find(task.q_begin + i);
        ASSERT_NE(found, visible_of_row.end());
        EXPECT_EQ(found->second, std::make_pair(task.kv_begin, NumKeysSeen(task, i)));
      }
    }
    EXPECT_EQ(visible_of_row.size(), rows);
  }
}

// Of shards of long documents, those that see the same keys come together, one head after the
// other: not one tile of every shard in all heads, whose keys no two blocks would share. What is
// short comes in one batch, in as many heads at a time as the cache holds the keys of.
TEST(SoftmaxAttentionPlanTest, ForwardTilesComeInBatchesThatTheCacheHolds) {
  std::vector<AttentionTask> tasks;
  for (int64_t i = 0; i < 4; ++i) tasks.push_back({i * 512, 512, (3 - i) * 32768, 32768});
  for (int64_t i = 0; i < 3; ++i) tasks.push_back({2048 + i * 128, 128, 131072 + i * 2048, 2048});
  const PlanOnHost planned(tasks, TilingOf(128), 4, false);
  const SoftmaxAttentionPlanView& view = planned.view;
  ASSERT_EQ(view.tiling.cached_keys, 32768);
  ASSERT_EQ(view.num_forward_tiles, 19);
  for (int64_t i = 0; i < 16; ++i) {
    const QueryTile& tile = view.forward_tiles[i];
    EXPECT_EQ(tile.kv_begin, i / 4 * 32768);
    EXPECT_EQ(tile.q_begin, (3 - i / 4) * 512 + (3 - i % 4) * 128);
    EXPECT_EQ(tile.batch_begin, i / 4 * 4);
    EXPECT_EQ(tile.batch_tiles, 4);
    EXPECT_EQ(tile.heads_at_once, 1);
  }
  for (int64_t i = 16; i < 19; ++i) {
    const QueryTile& tile = view.forward_tiles[i];
    EXPECT_EQ(tile.kv_begin, 131072 + (i - 16) * 2048);
    EXPECT_EQ(tile.batch_begin, 16);
    EXPECT_EQ(tile.batch_tiles, 3);
    EXPECT_EQ(tile.heads_at_once, 4);  // 3 of 2,048 keys fit 5 times
  }
}

// Plays the backward kernel's loop in ticket order: every contribution must find its turn.
TEST(SoftmaxAttentionPlanTest, KeyTilesMeetEveryTaskInAscendingTurns) {
  std::mt19937 rng(2);
  for (int round = 0; round < 40; ++round) {
    std::vector<AttentionTask> tasks = RandomTasks(rng, 10, 900);
    tasks.push_back({100000, 300, 50, 20});  // more queries than keys, keys shared with others
    tasks.push_back({200000, 0, 0, 100});
    tasks.push_back({300000, 10, 0, 0});
    tasks.push_back({400000, 10, 0, 0, 7});
    tasks.push_back({500000, 300, 70, 20, 290});
    for (const AttentionTask& task : tasks) {
      for (int64_t i = 0; i < task.q_len; i += 37) {
        EXPECT_EQ(std::clamp<int64_t>(DiagonalOffset(task) + i + 1, 0, task.kv_len),
                  NumKeysSeen(task, i));
      }
    }
    constexpr int kDims[] = {128, 64, 256};
    const SoftmaxAttentionTiling tiling = TilingOf(kDims[round % 3]);
    const PlanOnHost planned(tasks, tiling, 1 + round % 5, true);
    const SoftmaxAttentionPlanView& view = planned.view;
    std::vector<int> turns(view.num_query_tiles, 0);
    std::map<int64_t, int> tiles_of_key;
    int64_t batch_end = 0;
    for (int64_t i = 0; i < view.num_key_tiles; ++i) {
      const KeyTile& keys = view.key_tiles[i];
      if (i == batch_end) {
        EXPECT_EQ(keys.batch_begin, i);
        batch_end += keys.batch_tiles;
      }
      const KeyTile& first = view.key_tiles[keys.batch_begin];
      EXPECT_EQ(keys.batch_begin, first.batch_begin);
      EXPECT_EQ(keys.batch_tiles, first.batch_tiles);
      EXPECT_EQ(keys.heads_at_once, first.heads_at_once);
      EXPECT_GT(keys.heads_at_once, 0);
      ASSERT_LE(keys.kv_rows, tiling.backward_keys);
      for (int r = 0; r < keys.kv_rows; ++r) ++tiles_of_key[keys.kv_begin + r];
      int met = 0;
      for (int64_t t = 0; t < view.num_tasks; ++t) {
        const PlannedTask& task = view.tasks[t];
        const bool meets = task.kv_begin < keys.kv_begin + keys.kv_rows &&
                           task.kv_begin + task.kv_len > keys.kv_begin;
        if (!meets) continue;
        ++met;
        EXPECT_GE(t, keys.task_begin);
        EXPECT_LT(t, keys.task_end);
        const int turn = (keys.kv_begin - task.first_key_tile_row) / tiling.backward_keys;
        for (int row = 0; row < task.q_len; row += tiling.backward_queries) {
          const int last = std::min(row + tiling.backward_queries, task.q_len) - 1;
          const int end = task.kv_begin + std::min(task.visible + last, task.kv_len);
          if (end <= std::max(keys.kv_begin, task.kv_begin)) continue;
          EXPECT_EQ(turns[task.first_tile + row / tiling.backward_queries]++, turn);
        }
      }
      EXPECT_GT(met, 0);
    }
    EXPECT_EQ(batch_end, view.num_key_tiles);
    for (const auto& [key, count] : tiles_of_key) EXPECT_EQ(count, 1) << key;
    for (const AttentionTask& task : tasks) {
      if (task.q_len == 0) continue;
      for (int64_t key = 0; key < task.kv_len; ++key) {
        EXPECT_EQ(tiles_of_key.count(task.kv_begin + key), 1u);
      }
    }
  }
}

// Runs of few steps are merged until there is work for all blocks; what is long comes alone, and
// first.
TEST(SoftmaxAttentionPlanTest, KeyTilesComeInBatchesThatDoNotWait) {
  std::vector<AttentionTask> tasks;
  for (int64_t i = 0; i < 40; ++i) tasks.push_back({i * 128, 128, i * 2048, 2048});
  tasks.push_back({40 * 128, 65536, 40 * 2048, 65536});
  const PlanOnHost planned(tasks, TilingOf(128), 4, true);
  const SoftmaxAttentionPlanView& view = planned.view;
  ASSERT_EQ(view.num_key_tiles, 512 + 40 * 16);
  for (int64_t i = 0; i < 512; ++i) {
    EXPECT_EQ(view.key_tiles[i].kv_begin, 40 * 2048 + i * 128);
    EXPECT_EQ(view.key_tiles[i].batch_tiles, 512);
    EXPECT_EQ(view.key_tiles[i].heads_at_once, 1);
  }
  // Tiles of 8 steps, so 8 of a run at a time: 16 runs for 128 blocks, then 16, then 8.
  for (int64_t i = 512; i < view.num_key_tiles; ++i) {
    const KeyTile& keys = view.key_tiles[i];
    const int64_t batch = (i - 512) / (16 * 16), within = (i - 512) % (16 * 16);
    const int64_t runs = batch < 2 ? 16 : 8;
    EXPECT_EQ(keys.batch_begin, 512 + batch * 16 * 16);
    EXPECT_EQ(keys.batch_tiles, runs * 16);
    EXPECT_EQ(keys.heads_at_once, batch < 2 ? 1 : 2);
    EXPECT_EQ(keys.kv_begin, (batch * 16 + within % runs) * 2048 + within / runs * 128);
  }
}

// A key tile that fewer tasks see leaves out the last ones, so it never skips one.
TEST(SoftmaxAttentionPlanTest, TasksThatReachFurthestComeFirst) {
  std::mt19937 rng(6);
  for (int round = 0; round < 20; ++round) {
    const std::vector<AttentionTask> tasks = RandomTasks(rng, 9, 900);
    const PlanOnHost planned(tasks, TilingOf(64), 1, true);
    const SoftmaxAttentionPlanView& view = planned.view;
    for (int64_t i = 1; i < view.num_tasks; ++i) {
      const PlannedTask &before = view.tasks[i - 1], &task = view.tasks[i];
      EXPECT_GE(before.kv_begin + before.kv_len, task.kv_begin + task.kv_len);
    }
  }
}

TEST(SoftmaxAttentionPlanTest, AnEmptyListIsAnEmptyPlan) {
  const SoftmaxAttentionPlan plan = PlanSoftmaxAttention(nullptr, 0, TilingOf(128), 1, true);
  EXPECT_EQ(plan.num_forward_tiles, 0);
  EXPECT_EQ(plan.num_key_tiles, 0);
  EXPECT_TRUE(plan.bytes.empty());
}

TEST(LightningPlanTest, SegmentsCoverEveryDocumentInOrder) {
  const std::vector<int64_t> cu_seqlens = {0, 0, 1, 700, 700, 1213, 2000};
  const LightningPlan plan = PlanLightningAttention(cu_seqlens.data(), 6, 256);
  const LightningPlanView view = ViewOf(plan, plan.bytes.data());
  ASSERT_EQ(view.num_documents, 6);
  int64_t row = 0, segment = 0;
  for (int d = 0; d < 6; ++d) {
    EXPECT_EQ(view.documents[d].begin, segment);
    for (; segment < view.documents[d].end; ++segment) {
      EXPECT_EQ(view.segments[segment].row_begin, row);
      EXPECT_EQ(view.segments[segment].document, d);
      EXPECT_TRUE(view.segments[segment].rows == 256 || segment + 1 == view.documents[d].end);
      row += view.segments[segment].rows;
    }
    EXPECT_EQ(row, cu_seqlens[d + 1]);
  }
  EXPECT_EQ(segment, view.num_segments);
  EXPECT_EQ(view.num_tokens, 2000);
  // Every segment but the last of a document is a join.
  const std::vector<int32_t> joins(view.joins, view.joins + view.num_joins);
  std::vector<int32_t> want;
  for (int32_t s = 0; s + 1 < view.num_segments; ++s) {
    if (view.segments[s].document == view.segments[s + 1].document) want.push_back(s);
  }
  EXPECT_EQ(joins, want);
}

TEST(LightningPlanTest, OneSequenceIsNotCutMoreThanTheGpuNeeds) {
  for (const int64_t tokens : {1000, 32768, 131072, 524288}) {
    for (const int heads : {1, 12, 16, 64, 300}) {
      const int rows = LightningSegmentRows(tokens, heads, 128, 132);
      EXPECT_LE((tokens + rows - 1) / rows * heads, std::max(132, heads));
    }
  }
}

TEST(LightningPlanTest, SegmentLengthIsAMultipleOfTheChunk) {
  for (const int64_t tokens : {1, 1000, 32768, 524288}) {
    for (const int heads : {1, 16, 64}) {
      const int rows = LightningSegmentRows(tokens, heads, 128, 132);
      EXPECT_EQ(rows % kLightningChunk, 0);
      EXPECT_GE(rows, kLightningChunk);
    }
  }
}

// Every task is in one group, whose rows cover its keys; rows of groups are apart.
TEST(ReluAttentionPlanTest, TasksThatShareKeysAreInOneGroup) {
  std::mt19937 rng(5);
  for (int round = 0; round < 50; ++round) {
    const std::vector<AttentionTask> tasks = RandomTasks(rng, 9, 400);
    const ReluAttentionPlan plan =
        PlanReluAttention(tasks.data(), static_cast<int64_t>(tasks.size()));
    std::multiset<int64_t> rows, planned_rows;  // a task's first query row names it
    for (const AttentionTask& task : tasks) rows.insert(task.q_begin);
    int64_t next_task = 0, end = 0;
    for (const ReluTaskGroup& group : plan.groups) {
      EXPECT_EQ(group.first_task, next_task);
      EXPECT_GE(group.kv_begin, end);
      next_task += group.num_tasks;
      end = group.kv_begin + group.kv_len;
      int64_t last = 0;
      for (int64_t i = group.first_task; i < next_task; ++i) {
        const AttentionTask& task = plan.tasks.at(static_cast<size_t>(i));
        planned_rows.insert(task.q_begin);
        EXPECT_GE(task.kv_begin, group.kv_begin);
        last = std::max(last, task.kv_begin + task.kv_len);
      }
      EXPECT_EQ(last, end);
    }
    EXPECT_EQ(planned_rows, rows);
  }
}

}  // namespace
}  // namespace evenkeel
