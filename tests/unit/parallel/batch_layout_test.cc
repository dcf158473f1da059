#include "parallel/batch_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

namespace evenkeel {
namespace {

using Range = std::pair<int64_t, int64_t>;  // first sample, number of samples

std::vector<Range> RangesOf(const std::vector<MicroBatch>& batches) {
  std::vector<Range> ranges;
  for (const MicroBatch& batch : batches)
    ranges.emplace_back(batch.first_sample, batch.num_samples);
  return ranges;
}

// The micro-batches of all ranks with a sample, by first sample.
std::vector<Range> AllRanges(int64_t step, int64_t global, int64_t micro, int dp) {
  std::vector<Range> all;
  for (int rank = 0; rank < dp; ++rank) {
    for (const Range& range : RangesOf(MicroBatchesOfRank(step, global, micro, rank, dp))) {
      if (range.second > 0) all.push_back(range);
    }
  }
  std::sort(all.begin(), all.end());
  return all;
}

TEST(BatchLayout, DealsByTable) {
  const struct {
    int64_t step, global, micro;
    int rank, dp;
    std::vector<Range> expected;
  } cases[] = {
      {0, 8, 2, 0, 1, {{0, 2}, {2, 2}, {4, 2}, {6, 2}}},
      {0, 8, 2, 1, 2, {{2, 2}, {6, 2}}},
      {3, 8, 2, 1, 2, {{26, 2}, {30, 2}}},
      {0, 7, 2, 1, 2, {{2, 2}, {6, 1}}},  // the last one is smaller
      {1, 5, 2, 2, 3, {{9, 1}}},
      {0, 2, 1, 2, 4, {{2, 0}}},          // no work for this rank
      {0, 7, 2, 2, 3, {{4, 2}, {7, 0}}},  // none in the last turn
      {0, 1, 16, 0, 4, {{0, 1}}},         // a micro-batch larger than the batch
      {5, 1, 16, 1, 4, {{6, 0}}},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(RangesOf(MicroBatchesOfRank(c.step, c.global, c.micro, c.rank, c.dp)), c.expected)
        << c.step << " " << c.global << " " << c.micro << " " << c.rank << "/" << c.dp;
  }
}

TEST(BatchLayout, MicroBatchesPartitionTheStepWhateverTheRanks) {
  for (const int64_t step : {int64_t{0}, int64_t{1}, int64_t{1} << 33}) {
    for (int64_t global = 1; global <= 24; ++global) {
      for (int64_t micro = 1; micro <= 9; ++micro) {
        const std::vector<Range> alone = AllRanges(step, global, micro, 1);
        int64_t next = step * global;
        for (const auto& [first, count] : alone) {
          ASSERT_EQ(first, next);
          ASSERT_GE(count, 1);
          ASSERT_LE(count, micro);
          next = first + count;
        }
        ASSERT_EQ(next, (step + 1) * global);
        // Other numbers of ranks compute the very same micro-batches.
        for (int dp = 2; dp <= 7; ++dp) ASSERT_EQ(AllRanges(step, global, micro, dp), alone);
      }
    }
  }
}

// Replicas take part in the same collectives, so they count alike; what is left over is empty and
// comes last, and no turn is empty on all of them.
TEST(BatchLayout, ReplicasHaveEquallyManyMicroBatchesAndEmptyOnesComeLast) {
  for (int64_t global = 1; global <= 40; ++global) {
    for (int dp = 1; dp <= 6; ++dp) {
      const auto most = static_cast<size_t>((global + 3 * dp - 1) / (3 * dp));
      for (int rank = 0; rank < dp; ++rank) {
        const auto batches = MicroBatchesOfRank(2, global, 3, rank, dp);
        ASSERT_EQ(batches.size(), most) << global << " samples, rank " << rank << " of " << dp;
        for (size_t i = 0; i < batches.size(); ++i) {
          ASSERT_GE(batches[i].num_samples, rank == 0 ? 1 : 0);
          const bool is_empty = batches[i].num_samples == 0;
          ASSERT_TRUE(!is_empty || i + 1 == batches.size());
        }
      }
    }
  }
}

}  // namespace
}  // namespace evenkeel
