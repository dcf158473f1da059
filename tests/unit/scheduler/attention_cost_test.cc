#include "scheduler/attention_cost.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>

namespace evenkeel {
namespace {

TEST(CausalPairs, CountsWhatQueriesSee) {
  for (const auto& [q, kv] : {std::pair<int64_t, int64_t>{1, 1}, {1, 9}, {5, 5}, {3, 70}}) {
    int64_t pairs = 0;
    for (int64_t i = 0; i < q; ++i) pairs += kv - q + i + 1;
    EXPECT_EQ(CausalPairs(q, kv), static_cast<double>(pairs)) << q << " " << kv;
  }
}

TEST(AttentionCost, PerPairIsConstant) {
  const AttentionCost cost = AttentionCost::PerPair(2.5);
  EXPECT_TRUE(cost.is_constant());
  EXPECT_EQ(cost.Seconds(3, 70), 2.5 * (68 + 69 + 70));
  EXPECT_EQ(cost.Seconds(0, 70), 0);
}

// 2 query lengths by 3 key lengths.
AttentionCost SmallGrid() {
  auto cost = AttentionCost::Grid({128, 512}, {1024, 4096, 65536}, {8, 4, 2, 6, 3, 1});
  EXPECT_TRUE(cost.ok()) << cost.status();
  return *std::move(cost);
}

double PerPair(const AttentionCost& cost, int64_t q, int64_t kv) {
  return cost.Seconds(q, kv) / CausalPairs(q, kv);
}

TEST(AttentionCost, GridHoldsAtItsPoints) {
  const AttentionCost cost = SmallGrid();
  EXPECT_FALSE(cost.is_constant());
  EXPECT_DOUBLE_EQ(PerPair(cost, 128, 1024), 8);
  EXPECT_DOUBLE_EQ(PerPair(cost, 128, 4096), 4);
  EXPECT_DOUBLE_EQ(PerPair(cost, 512, 65536), 1);
  EXPECT_EQ(cost.Seconds(0, 1024), 0);
}

TEST(AttentionCost, GridInterpolatesInLogarithms) {
  const AttentionCost cost = SmallGrid();
  EXPECT_NEAR(PerPair(cost, 128, 2048), 6, 1e-12);
  EXPECT_NEAR(PerPair(cost, 256, 1024), 7, 1e-12);
  EXPECT_NEAR(PerPair(cost, 256, 2048), (8 + 4 + 6 + 3) / 4.0, 1e-12);
  EXPECT_NEAR(PerPair(cost, 512, 16384), 2, 1e-12);
  // Against the formula, with the library's logarithm.
  std::mt19937_64 draw(3);
  for (int i = 0; i < 200; ++i) {
    const int64_t q = std::uniform_int_distribution<int64_t>(128, 512)(draw);
    const int64_t kv = std::uniform_int_distribution<int64_t>(4096, 65536)(draw);
    const double down = std::log(static_cast<double>(q) / 128) / std::log(4.0);
    const double right = std::log(static_cast<double>(kv) / 4096) / std::log(16.0);
    const double above = 4 + right * (2 - 4), below = 3 + right * (1 - 3);
    EXPECT_NEAR(PerPair(cost, q, kv), above + down * (below - above), 1e-11) << q << " " << kv;
  }
}

TEST(AttentionCost, EdgesOfTheGridHoldBeyondIt) {
  const AttentionCost cost = SmallGrid();
  EXPECT_DOUBLE_EQ(PerPair(cost, 1, 1), 8);
  EXPECT_DOUBLE_EQ(PerPair(cost, 1, 1 << 20), 2);
  EXPECT_DOUBLE_EQ(PerPair(cost, 4096, 1 << 20), 1);
  const auto point = AttentionCost::Grid({128}, {128}, {3});
  ASSERT_TRUE(point.ok());
  EXPECT_DOUBLE_EQ(PerPair(*point, 1000, 5000), 3);
}

TEST(AttentionCost, RefusesWhatIsNoGrid) {
  const auto message = [](std::vector<int64_t> q, std::vector<int64_t> kv,
                          std::vector<double> seconds) {
    return std::string(
        AttentionCost::Grid(std::move(q), std::move(kv), std::move(seconds)).status().message());
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(message({}, {1}, {}), "q_lens is empty; at least one length");
  EXPECT_EQ(message({1}, {}, {}), "kv_lens is empty; at least one length");
  EXPECT_EQ(message({0}, {1}, {1}), "q_lens begins with 0; lengths are at least 1");
  EXPECT_EQ(message({1}, {4, 4}, {1, 1}), "kv_lens has 4 after 4; lengths have to ascend");
  EXPECT_EQ(message({1, 2}, {4, 8}, {1, 1, 1}),
            "seconds_per_pair has 3 numbers; 2 query lengths by 2 key lengths take 4");
  EXPECT_EQ(message({1, 2}, {4, 8}, {4, 3, 2, 0}),
            "seconds_per_pair is 0 for 2 queries and 8 keys; it has to be positive and finite");
  EXPECT_NE(message({1}, {4}, {nan}), "");
}

}  // namespace
}  // namespace evenkeel
