#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <utility>

#include "scheduler/disaggregation_plan.h"

namespace evenkeel {
namespace {

// Every link is in one round, no round has two of a sender or of a receiver, and there are as many
// rounds as the busiest side of a rank has links.
void ExpectRounds(int num_ranks, const std::vector<AttentionLink>& links) {
  const auto rounds = MessageRounds(num_ranks, links);
  std::vector<int> seen(links.size(), 0), sends(static_cast<size_t>(num_ranks), 0),
      receives(static_cast<size_t>(num_ranks), 0);
  for (const AttentionLink& link : links) {
    ++sends[static_cast<size_t>(link.from)];
    ++receives[static_cast<size_t>(link.to)];
  }
  int busiest = 0;
  for (const int count : sends) busiest = std::max(busiest, count);
  for (const int count : receives) busiest = std::max(busiest, count);
  EXPECT_EQ(rounds.size(), static_cast<size_t>(busiest));
  for (const auto& round : rounds) {
    std::set<int32_t> senders, receivers;
    EXPECT_FALSE(round.empty());
    for (const int32_t index : round) {
      const AttentionLink& link = links[static_cast<size_t>(index)];
      ++seen[static_cast<size_t>(index)];
      EXPECT_TRUE(senders.insert(link.from).second);
      EXPECT_TRUE(receivers.insert(link.to).second);
    }
  }
  for (const int count : seen) EXPECT_EQ(count, 1);
}

TEST(MessageRounds, OfNothing) {
  EXPECT_TRUE(MessageRounds(4, {}).empty());
}

TEST(MessageRounds, OfOneSender) {
  ExpectRounds(4, {{0, 1, 1, 1}, {0, 2, 5, 1}, {0, 3, 1, 1}});
}

TEST(MessageRounds, OfAllToAll) {
  for (int ranks = 2; ranks <= 9; ++ranks) {
    std::vector<AttentionLink> links;
    for (int from = 0; from < ranks; ++from) {
      for (int to = 0; to < ranks; ++to) {
        if (from != to) links.push_back({from, to, 1, 1});
      }
    }
    ExpectRounds(ranks, links);
  }
}

TEST(MessageRounds, OfRandomLinks) {
  std::mt19937_64 draw(11);
  for (int trial = 0; trial < 300; ++trial) {
    const int ranks = std::uniform_int_distribution<int>(1, 24)(draw);
    const int density = std::uniform_int_distribution<int>(0, 100)(draw);
    std::vector<AttentionLink> links;
    for (int from = 0; from < ranks; ++from) {
      for (int to = 0; to < ranks; ++to) {
        if (from == to || static_cast<int>(draw() % 100) >= density) continue;
        links.push_back({from, to, static_cast<int64_t>(draw() % 50), 1});
      }
    }
    ExpectRounds(ranks, links);
    if (HasFailure()) FAIL() << "trial " << trial;
  }
}

TEST(MessageRounds, LongMessagesComeFirst) {
  // Two disjoint pairs and a short one between them: the long ones share a round.
  const std::vector<AttentionLink> links = {{0, 1, 0, 9}, {0, 3, 0, 1}, {2, 3, 0, 10}};
  const auto rounds = MessageRounds(4, links);
  ASSERT_EQ(rounds.size(), 2);
  EXPECT_EQ(rounds[0], (std::vector<int32_t>{0, 2}));
  EXPECT_EQ(rounds[1], (std::vector<int32_t>{1}));
}

}  // namespace
}  // namespace evenkeel
