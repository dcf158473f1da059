#include "scheduler/sim_timeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace evenkeel {
namespace {

using ::testing::DoubleEq;
using ::testing::ElementsAre;

TEST(SimTimeline, WorkQueuesOnItsStream) {
  SimTimeline timeline(2);
  EXPECT_EQ(timeline.Compute(0, SimWork::kLinear, 0, 2), 2);
  EXPECT_EQ(timeline.Compute(0, SimWork::kAttention, 1, 3), 5);
  EXPECT_EQ(timeline.Compute(0, SimWork::kLinear, 7, 1), 8);
  EXPECT_EQ(timeline.Compute(1, SimWork::kCopy, 0.5, 1), 1.5);
  EXPECT_EQ(timeline.Compute(1, SimWork::kCopy, 0, 0), 1.5);
  EXPECT_EQ(timeline.makespan(), 8);
  EXPECT_EQ(timeline.busy()[0].linear, 3);
  EXPECT_EQ(timeline.busy()[0].attention, 3);
  EXPECT_EQ(timeline.busy()[1].copy, 1);
}

// Rank 0 sends to 1 and 2 in turn, while 2 sends to 0 beside the first of these.
TEST(SimTimeline, MessagesInRounds) {
  SimTimeline timeline(3);
  const std::vector<SimMessage> messages = {{0, 1, 2}, {0, 2, 3}, {2, 0, 5}};
  const std::vector<std::vector<int32_t>> rounds = {{0, 2}, {1}};
  const std::vector<double> ready = {1, 0, 4};
  std::vector<double> arrived;
  timeline.Exchange(messages, rounds, ready, &arrived);
  // 0 -> 1: 1 to 3. 2 -> 0: 4 to 9. Then 0 -> 2, when both are done with the first round: 9 to 12.
  EXPECT_THAT(arrived, ElementsAre(DoubleEq(9), DoubleEq(3), DoubleEq(12)));
  EXPECT_EQ(timeline.makespan(), 12);
  EXPECT_EQ(timeline.busy()[0].message, 8 + 3);
  EXPECT_EQ(timeline.busy()[1].message, 3);
}

TEST(SimTimeline, OneStreamHoldsUpComputation) {
  for (bool one_stream : {false, true}) {
    SimTimeline timeline(2, one_stream);
    std::vector<double> arrived;
    timeline.Exchange({{0, 1, 4}}, {{0}}, {0, 0}, &arrived);
    EXPECT_EQ(timeline.Compute(0, SimWork::kLinear, 0, 1), one_stream ? 5 : 1);
  }
}

// The same program as a graph of nodes that end so long after all before them.
class Graph {
 public:
  int Add(std::vector<int> before, double seconds, double earliest = 0) {
    double start = earliest;
    for (int node : before) {
      if (node >= 0) start = std::max(start, end_[static_cast<size_t>(node)]);
    }
    end_.push_back(start + seconds);
    return static_cast<int>(end_.size()) - 1;
  }
  double End(int node) const { return node < 0 ? 0 : end_[static_cast<size_t>(node)]; }
  double Last() const { return *std::max_element(end_.begin(), end_.end()); }

 private:
  std::vector<double> end_;
};

// Random work and exchanges: streams never do two things at once, and all times are those of the
// longest path through the graph of what waits for what.
TEST(SimTimeline, RandomProgramsAreLongestPaths) {
  std::mt19937 random(3);
  const auto draw = [&random](int n) {
    return static_cast<int>(random() % static_cast<unsigned>(n));
  };
  for (int trial = 0; trial < 200; ++trial) {
    const int ranks = 2 + draw(5);
    const bool one_stream = draw(3) == 0;
    SimTimeline timeline(ranks, one_stream);
    timeline.RecordSpans();
    Graph graph;
    std::vector<int> compute(static_cast<size_t>(ranks), -1), comm = compute, got = compute;
    for (int step = 0; step < 30; ++step) {
      std::vector<int>& stream = one_stream ? compute : comm;
      if (draw(2) == 0) {
        const int rank = draw(ranks);
        const auto at = static_cast<size_t>(rank);
        const double seconds = 0.25 * (1 + draw(8));
        const double end = timeline.Compute(rank, SimWork::kLinear, graph.End(got[at]), seconds);
        compute[at] = graph.Add({compute[at], got[at]}, seconds);
        ASSERT_DOUBLE_EQ(end, graph.End(compute[at]));
        continue;
      }
      // Rounds of random partial matchings.
      std::vector<SimMessage> messages;
      std::vector<std::vector<int32_t>> rounds(static_cast<size_t>(1 + draw(3)));
      std::vector<double> ready;
      for (int rank = 0; rank < ranks; ++rank) {
        ready.push_back(graph.End(compute[static_cast<size_t>(rank)]));
      }
      const std::vector<int> after = compute;
      std::vector<int> received(static_cast<size_t>(ranks), -1);
      for (auto& round : rounds) {
        std::vector<int> to(static_cast<size_t>(ranks));
        for (int i = 0; i < ranks; ++i) to[static_cast<size_t>(i)] = i;
        std::shuffle(to.begin(), to.end(), random);
        std::vector<std::vector<int>> ends(static_cast<size_t>(ranks));
        const std::vector<int> start = stream;
        for (int from = 0; from < ranks; ++from) {
          const auto s = static_cast<size_t>(from);
          const int peer = to[s];
          const auto d = static_cast<size_t>(peer);
          if (peer == from || draw(3) == 0) continue;
          const double seconds = 0.25 * (1 + draw(8));
          round.push_back(static_cast<int32_t>(messages.size()));
          messages.push_back({from, peer, seconds});
          const int node = graph.Add({start[s], after[s], start[d], after[d]}, seconds);
          ends[s].push_back(node);
          ends[d].push_back(node);
        }
        for (int rank = 0; rank < ranks; ++rank) {
          const auto at = static_cast<size_t>(rank);
          if (!ends[at].empty()) stream[at] = graph.Add(ends[at], 0);
        }
        for (int32_t index : round) {
          const auto d = static_cast<size_t>(messages[static_cast<size_t>(index)].to);
          received[d] = stream[d];
        }
      }
      std::vector<double> arrived;
      timeline.Exchange(messages, rounds, ready, &arrived);
      for (size_t rank = 0; rank < received.size(); ++rank) {
        ASSERT_DOUBLE_EQ(arrived[rank], graph.End(received[rank]));
        if (received[rank] >= 0) got[rank] = received[rank];
      }
    }
    EXPECT_DOUBLE_EQ(timeline.makespan(), graph.Last());
    for (const SimSpan& a : timeline.spans()) {
      EXPECT_GE(a.start, a.ready);
      for (const SimSpan& b : timeline.spans()) {
        if (&a == &b || a.rank != b.rank) continue;
        const bool same_port = a.is_communication == b.is_communication && a.is_send == b.is_send;
        const bool same_stream = one_stream && a.is_communication != b.is_communication;
        if (!same_port && !same_stream) continue;
        EXPECT_TRUE(a.end <= b.start || b.end <= a.start);
      }
    }
  }
}

}  // namespace
}  // namespace evenkeel
