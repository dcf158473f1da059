// The order of work, which speed hangs on, is that of the rule spelled out tile by tile.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "attention/kernels/cuda/radix_order.h"
#include "tests/gpu/attention_plan_reference.h"
#include "tests/gpu/plan_on_host.h"

namespace evenkeel {
namespace {

using Tasks = std::vector<AttentionTask>;

template <typename T>
std::string Text(const T& tile) {
  std::array<int32_t, sizeof(T) / 4> fields;
  std::memcpy(fields.data(), &tile, sizeof(T));
  std::string text;
  for (const int32_t field : fields) text += std::to_string(field) + " ";
  return text;
}

template <typename T>
void ExpectSame(const std::vector<T>& want, const T* got, int64_t count, const char* what) {
  ASSERT_EQ(static_cast<int64_t>(want.size()), count) << what;
  for (size_t i = 0; i < want.size(); ++i) ASSERT_EQ(Text(want[i]), Text(got[i])) << what << i;
}

void ExpectPlannedAsByTheRule(const Tasks& tasks, const SoftmaxAttentionTiling& tiling, int group) {
  const ReferencePlan want = PlanTileByTile(tasks, tiling, group);
  const PlanOnHost planned(tasks, tiling, group, true);
  const SoftmaxAttentionPlanView& got = planned.view;
  ExpectSame(want.forward_tiles, got.forward_tiles, got.num_forward_tiles, "forward tile ");
  ExpectSame(want.query_tiles, got.query_tiles, got.num_query_tiles, "query tile ");
  ExpectSame(want.key_tiles, got.key_tiles, got.num_key_tiles, "key tile ");
  ExpectSame(want.tasks, got.tasks, got.num_tasks, "task ");
  const PlanOnHost forward(tasks, tiling, group, false);
  ExpectSame(want.forward_tiles, forward.view.forward_tiles, forward.view.num_forward_tiles,
             "tile of the forward pass alone ");
  EXPECT_EQ(forward.view.num_key_tiles, 0);
}

int64_t Draw(std::mt19937& rng, int64_t least, int64_t most) {
  return least + static_cast<int64_t>(rng() % static_cast<uint64_t>(most - least + 1));
}

// Whole documents, shards that share their prefixes, shards of keys of their own, windows that
// overlap their neighbours, and tasks at random places of few keys; some ahead of their keys, some
// without queries or keys.
Tasks RandomList(std::mt19937& rng) {
  Tasks tasks;
  int64_t row = 0, key = 0;
  const int64_t longest = int64_t{1} << Draw(rng, 4, 15);
  const auto add = [&](int64_t q_len, int64_t kv_begin, int64_t kv_len) {
    int64_t ahead = 0;
    if (rng() % 8 == 0) ahead = rng() % 2 == 0 ? Draw(rng, 0, 500) : int64_t{1} << 50;
    tasks.push_back({row, q_len, kv_begin, kv_len, ahead});
    row += q_len;
  };
  const int64_t groups = Draw(rng, 1, 12);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t kind = Draw(rng, 0, 4), count = Draw(rng, 1, 20);
    const int64_t begin = key;
    const int64_t length = Draw(rng, 1, longest);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t own = rng() % 2 == 0 ? length : Draw(rng, 1, longest);
      if (kind == 0) add(own, key, own), key += own;
      if (kind == 1) add(Draw(rng, 1, 1000), begin, own), key = std::max(key, begin + own);
      if (kind == 2) add(Draw(rng, 1, 300), key, own), key += own;
      if (kind == 3) {
        add(Draw(rng, 1, 300), begin + i * (length / 4 + 1), length);
        key = tasks.back().kv_begin + length;
      }
      if (kind == 4) {
        const int64_t from = Draw(rng, 0, longest);
        add(Draw(rng, 0, rng() % 2 == 0 ? 300 : 2 * longest), begin + from,
            Draw(rng, 0, longest - from));
        key = std::max(key, begin + longest);
      }
    }
    if (rng() % 2 == 0) key += Draw(rng, 0, 300);
  }
  if (rng() % 4 != 0) std::shuffle(tasks.begin(), tasks.end(), rng);
  return tasks;
}

TEST(SoftmaxAttentionPlanOrderTest, RandomListsComeInTheOrderOfTheRule) {
  std::mt19937 rng(11);
  const SoftmaxAttentionTiling tilings[] = {
      TilingOf(64), TilingOf(128), TilingOf(256), {48, 80, 112, 3000}};
  for (int round = 0; round < 600; ++round) {
    SCOPED_TRACE(round);
    const Tasks tasks = RandomList(rng);
    ASSERT_NO_FATAL_FAILURE(ExpectPlannedAsByTheRule(
        tasks, tilings[round % 4], static_cast<int>(int64_t{1} << Draw(rng, 0, 6))));
  }
}

// As long and as many as attention servers get them.
TEST(SoftmaxAttentionPlanOrderTest, LongListsComeInTheOrderOfTheRule) {
  std::mt19937 rng(12);
  std::vector<Tasks> lists(6);
  lists[0] = {{0, 131072, 0, 131072}};
  for (int64_t i = 0; i < 8; ++i) lists[1].push_back({i * 8192, 8192, i * 8192, 8192});
  for (int64_t i = 0; i < 500; ++i) {
    lists[2].push_back({i * 128, 128, i % 4 * 65536, 65536});
    lists[3].push_back({i * 128, 128, i * 65536 / 8, 65536 / 8});
    lists[4].push_back({i * 200, 200, i * 70000 / 16, Draw(rng, 1, 70000 / 16)});
    lists[5].push_back({i * 1024, 1024, Draw(rng, 0, 7) * 131072, Draw(rng, 1, 128) * 1024});
  }
  for (const Tasks& tasks : lists) {
    for (const int group : {1, 4}) {
      ASSERT_NO_FATAL_FAILURE(ExpectPlannedAsByTheRule(tasks, TilingOf(128), group));
    }
  }
}

// A batch may have as many runs as there are blocks, of very different lengths.
TEST(SoftmaxAttentionPlanOrderTest, RunsOfOneBatchAreMergedAsByTheRule) {
  std::mt19937 rng(13);
  for (int round = 0; round < 100; ++round) {
    Tasks tasks;
    int64_t key = 0;
    for (int64_t i = 0; i < 140; ++i) {
      const int64_t length = Draw(rng, 1, rng() % 8 == 0 ? 20000 : 900);
      tasks.push_back({i * 8, Draw(rng, 1, 8), key, length});
      key += length;
    }
    ASSERT_NO_FATAL_FAILURE(ExpectPlannedAsByTheRule(tasks, TilingOf(128), 1));
  }
}

TEST(RadixOrderTest, IsStableAndAscending) {
  std::mt19937_64 rng(14);
  RadixOrder order;
  for (int round = 0; round < 300; ++round) {
    const auto count = static_cast<int32_t>(rng() % 400);
    const uint64_t mask = rng() & rng();  // many equal keys, constant digits between others
    std::vector<std::pair<uint64_t, int32_t>> want;
    order.Reserve(static_cast<size_t>(count));
    for (int32_t i = 0; i < count; ++i) {
      want.emplace_back(rng() & mask, i);
      order.Add(want.back().first, i);
    }
    std::stable_sort(want.begin(), want.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    const std::vector<RadixOrder::Item>& got = order.Sort();
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      ASSERT_EQ(got[i].key, want[i].first);
      ASSERT_EQ(got[i].index, want[i].second);
    }
  }
}

}  // namespace
}  // namespace evenkeel
