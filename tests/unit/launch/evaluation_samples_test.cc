#include "launch/evaluation_samples.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace evenkeel {
namespace {

// Every sample is in one pass of one replica, the passes of rounds follow one another, and the
// documents of a round are the samples' lengths.
TEST(EvaluationSamples, AreDealtOnce) {
  std::minstd_rand random(5);
  const auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<int64_t> lengths = {draw(1, 9)};
    while (static_cast<int64_t>(lengths.size()) < draw(1, 60)) lengths.push_back(draw(0, 50));
    const auto replicas = static_cast<int>(draw(1, 5)), stages = static_cast<int>(draw(1, 3));
    const int64_t length = draw(1, 30), most = draw(0, 1) * draw(1, 80);
    const auto samples = *EvaluationSamples::Create(lengths, length, most, replicas, stages);
    const auto order = *SequentialOrder::Create(lengths, length);
    ASSERT_EQ(samples.sequence_length(), length);
    ASSERT_EQ(samples.count(),
              most == 0 ? order.num_samples() : std::min(most, order.num_samples()));
    int64_t next = 0, pass = 0;
    for (int64_t round = 0; round < samples.num_rounds(); ++round) {
      const auto [first, end] = samples.PassesOf(round);
      ASSERT_EQ(first, pass);
      ASSERT_GT(end, first);
      const ReplicaCuSeqlens documents = samples.DocumentsOf(round);
      ASSERT_EQ(documents.size(), static_cast<size_t>(replicas));
      for (; pass < end; ++pass) {
        for (int replica = 0; replica < replicas; ++replica) {
          const auto& of_replica = documents[static_cast<size_t>(replica)];
          ASSERT_EQ(of_replica.size(), static_cast<size_t>(end - first));
          const std::vector<int64_t>& cu_seqlens = of_replica[static_cast<size_t>(pass - first)];
          const int64_t sample = samples.SampleOf(pass, replica);
          if (next == samples.count()) {
            ASSERT_EQ(sample, -1);
            ASSERT_EQ(cu_seqlens, (std::vector<int64_t>{0}));
            continue;
          }
          ASSERT_EQ(sample, next++);
          const std::vector<Piece> pieces = samples.Pieces(sample);
          ASSERT_EQ(pieces, order.Sample(sample * order.num_samples() / samples.count()));
          ASSERT_EQ(cu_seqlens, (std::vector<int64_t>{0, pieces.front().length}));
        }
      }
    }
    ASSERT_EQ(pass, samples.num_passes());
    ASSERT_EQ(next, samples.count());
  }
}

TEST(EvaluationSamples, OfNoTokenAreAnError) {
  EXPECT_FALSE(EvaluationSamples::Create({0, 0}, 8, 0, 1, 1).ok());
}

}  // namespace
}  // namespace evenkeel
