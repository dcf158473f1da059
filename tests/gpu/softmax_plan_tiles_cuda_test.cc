// The device makes the tiles that the host makes by the same functions, and leaves none out.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "attention/kernels/cuda/softmax_attention_cuda.h"
#include "tests/gpu/device_array.h"
#include "tests/gpu/plan_on_host.h"

namespace evenkeel {
namespace {

void ExpectTilesOfTheHost(const std::vector<AttentionTask>& tasks, int dim, int group,
                          bool backward) {
  const PlanOnHost want(tasks, TilingOf(dim), group, backward);
  const DeviceArray<std::byte> memory(PlanMemoryBytes(want.plan));  // of ones, as the host's
  ASSERT_EQ(cudaMemcpy(memory.data(), want.plan.bytes.data(), want.plan.bytes.size(),
                       cudaMemcpyHostToDevice),
            cudaSuccess);
  ASSERT_EQ(LaunchPlanTiles(want.plan, memory.data(), nullptr), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_TRUE(memory.Download() == want.memory);
}

class SoftmaxPlanTilesCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!HasGpu()) GTEST_SKIP() << "no GPU";
  }
};

TEST_F(SoftmaxPlanTilesCudaTest, DocumentsAndShards) {
  std::mt19937 rng(1);
  std::vector<std::vector<AttentionTask>> lists(5);
  lists[0] = {{0, 131072, 0, 131072}};
  for (int64_t i = 0; i < 8; ++i) lists[1].push_back({i * 8192, 8192, i * 8192, 8192});
  for (int64_t i = 0; i < 300; ++i) {
    lists[2].push_back({i * 128, 128, i % 4 * 65536, 65536});
    lists[3].push_back({i * 128, 128, i * 4096, 1 + static_cast<int64_t>(rng() % 4096)});
    // Anywhere, some without queries or keys.
    lists[4].push_back({i * 512, static_cast<int64_t>(rng() % 512),
                        static_cast<int64_t>(rng() % 100) * 1000,
                        static_cast<int64_t>(rng() % 5 * 1111), static_cast<int64_t>(rng() % 99)});
  }
  for (const std::vector<AttentionTask>& tasks : lists) {
    for (const int dim : {64, 128, 256}) {
      for (const int group : {1, 4}) {
        ExpectTilesOfTheHost(tasks, dim, group, true);
        ExpectTilesOfTheHost(tasks, dim, group, false);
      }
    }
  }
}

TEST_F(SoftmaxPlanTilesCudaTest, NothingToDo) {
  const std::vector<AttentionTask> tasks = {{0, 0, 0, 5}};
  const SoftmaxAttentionPlan plan = PlanSoftmaxAttention(tasks.data(), 1, TilingOf(128), 1, true);
  EXPECT_EQ(LaunchPlanTiles(plan, nullptr, nullptr), cudaSuccess);
}

}  // namespace
}  // namespace evenkeel
