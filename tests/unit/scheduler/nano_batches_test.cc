#include "scheduler/nano_batches.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "parallel/phase_schedule.h"

namespace evenkeel {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

TEST(CutEvenly, CutsWhereSharesEnd) {
  EXPECT_THAT(CutEvenly(std::vector<int64_t>{6, 2, 4}, 3),
              ElementsAre(ElementsAre(4), ElementsAre(2, 2), ElementsAre(4)));
  EXPECT_THAT(CutEvenly(std::vector<int64_t>{2}, 4),
              ElementsAre(SizeIs(0), ElementsAre(1), SizeIs(0), ElementsAre(1)));
}

// A document of two replicas' shares, over two ranks each: cut where the replica's share ends, and
// going on from the first nano-batch of both ranks to the second.
TEST(NanoBatches, OneDocument) {
  const NanoLayout layout = LayOutNanoBatches(std::vector<int64_t>{800}, 2, 2);
  ASSERT_THAT(layout.documents, SizeIs(2));
  for (size_t replica = 0; replica < 2; ++replica) {
    const NanoDocument& document = layout.documents[replica];
    EXPECT_EQ(document.length, 400);
    ASSERT_THAT(document.pieces, SizeIs(4));
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_EQ(document.pieces[i].owner, static_cast<int>(2 * replica + i % 2));
      EXPECT_EQ(document.pieces[i].nano, static_cast<int>(i / 2));
      EXPECT_EQ(document.pieces[i].begin, static_cast<int64_t>(100 * i));
      EXPECT_EQ(document.pieces[i].length, 100);
    }
  }
}

TEST(NanoBatches, CoverEveryTokenOnce) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<int64_t> lengths(1 + random() % 20);
    for (int64_t& length : lengths) length = 1 + static_cast<int64_t>(random() % 500);
    const int replicas = 1 + static_cast<int>(random() % 4);
    const int ranks = 1 + static_cast<int>(random() % 4);
    const NanoLayout layout = LayOutNanoBatches(lengths, replicas, ranks);
    const int64_t tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    std::vector<std::array<int64_t, 2>> counted(static_cast<size_t>(replicas * ranks));
    int64_t all = 0;
    for (const NanoDocument& document : layout.documents) {
      int64_t at = 0;
      int nano = 0;
      for (const NanoPiece& piece : document.pieces) {
        EXPECT_EQ(piece.begin, at);
        EXPECT_GT(piece.length, 0);
        EXPECT_GE(piece.nano, nano);
        EXPECT_EQ(piece.owner / ranks, document.pieces.front().owner / ranks);
        nano = piece.nano;
        at += piece.length;
        counted[static_cast<size_t>(piece.owner)][static_cast<size_t>(piece.nano)] += piece.length;
      }
      EXPECT_EQ(at, document.length);
      all += at;
    }
    EXPECT_EQ(all, tokens);
    EXPECT_EQ(counted, layout.tokens);
    for (const auto& owner : layout.tokens) {
      for (int64_t part : owner) {
        EXPECT_LE(std::abs(part - tokens / (2 * replicas * ranks)), 2);
      }
    }
  }
}

TEST(SamePhaseTicks, OrderOfTicks) {
  std::vector<std::pair<bool, int64_t>> order;
  for (const PhaseTick& tick : SamePhaseTicks(2, 3)) {
    order.emplace_back(tick.phase == PipelinePhase::kForward, tick.index);
  }
  using Tick = std::pair<bool, int64_t>;
  EXPECT_THAT(order, ElementsAre(Tick(true, 0), Tick(true, 1), Tick(false, 0), Tick(true, 2),
                                 Tick(false, 1), Tick(true, 3), Tick(false, 2), Tick(false, 3)));
}

TEST(SamePhaseTicks, EveryStageRunsEveryMicroBatchAfterWhatItNeeds) {
  for (int pp = 1; pp <= 5; ++pp) {
    for (int64_t count = 1; count <= 9; ++count) {
      // When each stage ran each micro-batch, in ticks.
      const auto size = static_cast<size_t>(pp) * static_cast<size_t>(count);
      std::vector<int> forward(size, -1), backward(size, -1);
      int now = 0;
      for (const PhaseTick& tick : SamePhaseTicks(pp, count)) {
        for (int stage = 0; stage < pp; ++stage) {
          const int64_t micro_batch = MicroBatchAt(tick, pp, count, stage);
          if (micro_batch < 0) continue;
          auto& times = tick.phase == PipelinePhase::kForward ? forward : backward;
          int& at = times[static_cast<size_t>(stage * count + micro_batch)];
          EXPECT_EQ(at, -1);
          at = now;
        }
        ++now;
      }
      EXPECT_EQ(now, 2 * (count + pp - 1));
      for (int stage = 0; stage < pp; ++stage) {
        for (int64_t i = 0; i < count; ++i) {
          const auto at = static_cast<size_t>(stage * count + i);
          const size_t next = at + static_cast<size_t>(count);
          EXPECT_LT(forward[at], backward[at]);
          if (stage + 1 < pp) {
            EXPECT_LT(forward[at], forward[next]);
            EXPECT_GT(backward[at], backward[next]);
          }
        }
        EXPECT_EQ(PeakInFlight(SamePhaseSchedule(pp, count), stage),
                  std::min<int64_t>(count, 2 * (pp - 1 - stage) + 1));
      }
    }
  }
}

}  // namespace
}  // namespace evenkeel
