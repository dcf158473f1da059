// Properties of plans over pools drawn at random: what is promised of every plan is counted again
// here, token by token where that is affordable.
#include "scheduler/disaggregation_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <utility>

namespace evenkeel {
namespace {

constexpr int64_t kShard = 128;

class Draw {
 public:
  explicit Draw(uint64_t seed) : engine_(seed) {}
  int64_t operator()(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  bool OneIn(int64_t n) { return (*this)(1, n) == 1; }

 private:
  std::mt19937_64 engine_;
};

// Lays documents one after the other over owners with `room` tokens each, as far as they go.
AttentionPool LayInOrder(const std::vector<int64_t>& lengths, const std::vector<int64_t>& room) {
  AttentionPool pool;
  pool.num_ranks = static_cast<int>(room.size());
  pool.speed.assign(room.size(), 1);
  pool.bytes = {.q = 1024, .kv = 512, .out = 1024, .lse = 16, .kv_gradient = 1024};
  size_t owner = 0;
  int64_t row = 0;
  for (const int64_t length : lengths) {
    PooledDocument document{.length = length,
                            .first_piece = static_cast<int32_t>(pool.pieces.size())};
    for (int64_t begin = 0; begin < length;) {
      while (owner + 1 < room.size() && row == room[owner]) {
        ++owner;
        row = 0;
      }
      const int64_t rest = length - begin;
      const int64_t take = owner + 1 < room.size() ? std::min(rest, room[owner] - row) : rest;
      pool.pieces.push_back({static_cast<int>(owner), begin, take, row});
      begin += take;
      row += take;
      ++document.num_pieces;
    }
    pool.documents.push_back(document);
  }
  return pool;
}

int64_t RandomLength(Draw& draw) {
  switch (draw(0, 4)) {
    case 0:
      return draw(1, 5);
    case 1:
      return draw(1, 300);
    case 2:
      return kShard * draw(1, 20);
    case 3:
      return draw(1, 5000);
    default:
      return draw(1, 40000);
  }
}

AttentionPool RandomPool(Draw& draw) {
  std::vector<int64_t> lengths(static_cast<size_t>(draw(1, 30)));
  for (int64_t& length : lengths) length = RandomLength(draw);
  if (draw.OneIn(6)) lengths.back() = 100000;  // longer than everything else together, often
  const int64_t tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  const auto ranks = static_cast<size_t>(draw(1, 16));
  std::vector<int64_t> room(ranks);
  for (int64_t& tokens_here : room) {
    tokens_here = draw.OneIn(5) ? 0 : tokens / static_cast<int64_t>(ranks) + draw(0, 200);
  }
  AttentionPool pool = LayInOrder(lengths, room);
  for (PooledDocument& document : pool.documents) {
    if (draw.OneIn(4)) document.q_begin = draw(0, document.length);
  }
  const int speeds = static_cast<int>(draw(0, 2));
  for (double& speed : pool.speed) {
    if (speeds == 1) speed = static_cast<double>(draw(1, 4)) / 2;
    if (speeds == 2 && draw.OneIn(3)) speed = 0;
  }
  if (draw.OneIn(4)) {  // dedicated servers
    for (int64_t n = draw(1, 4); n > 0; --n) pool.speed.push_back(1);
    pool.num_ranks = static_cast<int>(pool.speed.size());
  }
  if (*std::max_element(pool.speed.begin(), pool.speed.end()) == 0) pool.speed[0] = 1;
  return pool;
}

AttentionCost RandomCost(Draw& draw) {
  if (!draw.OneIn(3)) return AttentionCost::PerPair(1e-12);
  auto cost = AttentionCost::Grid({16, 128, 1024, 16384}, {128, 8192, 131072},
                                  {9e-12, 8e-12, 7e-12, 2e-12, 1.8e-12, 1.7e-12, 1.8e-12, 1.5e-12,
                                   1.4e-12, 1.8e-12, 1.4e-12, 1.3e-12});
  return *std::move(cost);
}

void ExpectCoverage(const AttentionPool& pool, const DisaggregationPlan& plan, int64_t shard) {
  std::vector<std::vector<std::pair<int64_t, int64_t>>> ranges(pool.documents.size());
  for (size_t i = 0; i < plan.tasks.size(); ++i) {
    const ServerTask& task = plan.tasks[i];
    ASSERT_GT(task.q_len, 0);
    ASSERT_GT(pool.speed[static_cast<size_t>(task.server)], 0);
    ranges[static_cast<size_t>(task.document)].push_back({task.q_begin, task.kv_len()});
    if (i == 0) continue;
    const ServerTask& last = plan.tasks[i - 1];
    ASSERT_LT(std::make_pair(std::make_pair(last.server, last.document), last.q_begin),
              std::make_pair(std::make_pair(task.server, task.document), task.q_begin));
    if (last.server == task.server && last.document == task.document) {
      ASSERT_LT(last.kv_len(), task.q_begin) << "tasks that touch are one";
    }
  }
  for (size_t d = 0; d < ranges.size(); ++d) {
    std::sort(ranges[d].begin(), ranges[d].end());
    int64_t position = pool.documents[d].q_begin;
    for (const auto& [begin, end] : ranges[d]) {
      ASSERT_EQ(begin, position) << "document " << d;
      if (begin != pool.documents[d].q_begin) {
        ASSERT_EQ(begin % shard, 0);
      }
      position = end;
    }
    ASSERT_EQ(position, pool.documents[d].length) << "document " << d;
  }
}

int OwnerOf(const AttentionPool& pool, int32_t document, int64_t position) {
  const PooledDocument& found = pool.documents[static_cast<size_t>(document)];
  for (int32_t i = 0; i < found.num_pieces; ++i) {
    const DocumentPiece& piece = pool.pieces[static_cast<size_t>(found.first_piece + i)];
    if (position < piece.begin + piece.length) return piece.owner;
  }
  return -1;
}

// By the definition: queries one by one, keys one by one into sets.
void ExpectBytes(const AttentionPool& pool, const DisaggregationPlan& plan) {
  std::map<std::pair<int, int>, std::pair<int64_t, int64_t>> expected;  // (from, to): q, kv tokens
  std::map<std::pair<int32_t, int32_t>, int64_t> keys;                  // (server, document)
  for (const ServerTask& task : plan.tasks) {
    for (int64_t q = task.q_begin; q < task.kv_len(); ++q) {
      const int owner = OwnerOf(pool, task.document, q);
      if (owner != task.server) ++expected[{owner, task.server}].first;
    }
    int64_t& most = keys[{task.server, task.document}];
    most = std::max(most, task.kv_len());
  }
  for (const auto& [key, most] : keys) {
    for (int64_t k = 0; k < most; ++k) {
      const int owner = OwnerOf(pool, key.second, k);
      if (owner != key.first) ++expected[{owner, key.first}].second;
    }
  }
  const auto links = LinksOf(pool, plan.tasks);
  ASSERT_EQ(links.size(), expected.size());
  std::vector<int64_t> sends(plan.send_bytes.size(), 0), receives(plan.recv_bytes.size(), 0);
  size_t i = 0;
  for (const auto& [ends, tokens] : expected) {
    ASSERT_EQ(links[i].from, ends.first);
    ASSERT_EQ(links[i].to, ends.second);
    ASSERT_EQ(links[i].q_tokens, tokens.first);
    ASSERT_EQ(links[i].kv_tokens, tokens.second);
    ++i;
    const int64_t bytes = tokens.first * pool.bytes.q + tokens.second * pool.bytes.kv;
    sends[static_cast<size_t>(ends.first)] += bytes;
    receives[static_cast<size_t>(ends.second)] += bytes;
  }
  EXPECT_EQ(plan.send_bytes, sends);
  EXPECT_EQ(plan.recv_bytes, receives);
}

void ExpectLoads(const DisaggregationPlan& plan, const AttentionCost& cost) {
  std::vector<double> load(plan.load.size(), 0);
  for (const ServerTask& task : plan.tasks) {
    load[static_cast<size_t>(task.server)] += cost.Seconds(task.q_len, task.kv_len());
  }
  EXPECT_EQ(plan.load, load);
}

// Loads are within the tolerance, or miss their target by no more than the costliest shard.
void ExpectBalance(const AttentionPool& pool, const AttentionCost& cost,
                   const DisaggregationPlan& plan, double tolerance) {
  double total = 0, speed = 0, costliest = 0;
  for (const double load : plan.load) total += load;
  for (const double each : pool.speed) speed += each;
  for (const PooledDocument& document : pool.documents) {
    for (int64_t begin = document.q_begin; begin < document.length;) {
      const int64_t end = std::min(document.length, (begin / kShard + 1) * kShard);
      costliest = std::max(costliest, cost.Seconds(end - begin, end));
      begin = end;
    }
  }
  for (size_t s = 0; s < plan.load.size(); ++s) {
    const double target = total * pool.speed[s] / speed;
    EXPECT_LE(plan.load[s], std::max(target * (1 + tolerance), target + 1.01 * costliest)) << s;
    EXPECT_GE(plan.load[s], std::min(target / (1 + tolerance), target - 1.01 * costliest)) << s;
  }
}

TEST(PlanDisaggregation, HoldsItsPromisesOnRandomPools) {
  for (uint64_t seed = 1; seed <= 400; ++seed) {
    Draw draw(seed);
    const AttentionPool pool = RandomPool(draw);
    const AttentionCost cost = RandomCost(draw);
    DisaggregationOptions options;
    options.tolerance = draw.OneIn(2) ? 0.02 : 0.15;
    const DisaggregationPlan plan = PlanDisaggregation(pool, cost, options);
    ExpectCoverage(pool, plan, options.shard_tokens);
    ExpectLoads(plan, cost);
    ExpectBytes(pool, plan);
    ExpectBalance(pool, cost, plan, options.tolerance);
    const DisaggregationPlan again = PlanDisaggregation(AttentionPool(pool), cost, options);
    EXPECT_EQ(again.load, plan.load);
    EXPECT_EQ(again.send_bytes, plan.send_bytes);
    ASSERT_EQ(again.tasks.size(), plan.tasks.size());
    for (size_t i = 0; i < plan.tasks.size(); ++i) {
      EXPECT_EQ(again.tasks[i].server, plan.tasks[i].server);
      EXPECT_EQ(again.tasks[i].q_begin, plan.tasks[i].q_begin);
    }
    if (HasFailure()) FAIL() << "seed " << seed;
  }
}

TEST(PlanInPlace, ComputesQueriesWhereTheyAre) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    Draw draw(seed);
    AttentionPool pool = RandomPool(draw);
    pool.speed.assign(pool.speed.size(), 1);
    const AttentionCost cost = RandomCost(draw);
    const DisaggregationPlan plan = PlanInPlace(pool, cost);
    ExpectCoverage(pool, plan, 1);
    ExpectLoads(plan, cost);
    ExpectBytes(pool, plan);
    for (const AttentionLink& link : LinksOf(pool, plan.tasks)) EXPECT_EQ(link.q_tokens, 0);
    if (HasFailure()) FAIL() << "seed " << seed;
  }
}

TEST(PlanDisaggregation, LeavesABalancedPoolAlone) {
  const AttentionPool pool = LayInOrder({1000, 3000, 1000, 3000, 1000, 3000}, {4000, 4000, 4000});
  const auto plan = PlanDisaggregation(pool, AttentionCost::PerPair(1), {});
  EXPECT_EQ(plan.tasks.size(), 6);
  for (const int64_t bytes : plan.send_bytes) EXPECT_EQ(bytes, 0);
}

TEST(PlanDisaggregation, OfOneTokenAndFewerDocumentsThanServers) {
  AttentionPool pool = LayInOrder({1}, {1, 0, 0, 0});
  auto plan = PlanDisaggregation(pool, AttentionCost::PerPair(1), {});
  ASSERT_EQ(plan.tasks.size(), 1);
  EXPECT_EQ(plan.tasks[0].kv_len(), 1);
  pool = LayInOrder({40 * kShard, 1}, {20 * kShard, 20 * kShard + 1, 0, 0, 0});
  plan = PlanDisaggregation(pool, AttentionCost::PerPair(1), {.tolerance = 0.1});
  ExpectCoverage(pool, plan, kShard);
  std::set<int32_t> servers;
  for (const ServerTask& task : plan.tasks) servers.insert(task.server);
  EXPECT_EQ(servers.size(), 5);
}

// A document over 8 of 32 owners, among short ones: its last query needs all its keys, of which an
// owner has an eighth. That is nearly all that any server receives, and nobody else takes part than
// who has to.
TEST(PlanDisaggregation, SendsLittleOfALongDocument) {
  const int64_t tokens = 16384;
  std::vector<int64_t> lengths(24 * tokens / 4096, 4096);
  lengths.insert(lengths.begin() + 20, 8 * tokens);
  const AttentionPool pool = LayInOrder(lengths, std::vector<int64_t>(32, tokens));
  const auto plan = PlanDisaggregation(pool, AttentionCost::PerPair(1), {.tolerance = 0.02});
  ExpectBytes(pool, plan);
  const int64_t received = *std::max_element(plan.recv_bytes.begin(), plan.recv_bytes.end());
  EXPECT_LT(received, 1.1 * 7 * tokens * pool.bytes.kv);
  const int64_t sent = *std::max_element(plan.send_bytes.begin(), plan.send_bytes.end());
  EXPECT_LT(sent, 1.1 * 31 * tokens * pool.bytes.kv);
}

// Where shards are fine, both bounds hold as they are.
TEST(PlanDisaggregation, KeepsWithinTheTolerance) {
  Draw draw(5);
  std::vector<int64_t> lengths;
  int64_t left = 64 * 65536;
  while (left > 0) {
    lengths.push_back(std::min(left, draw.OneIn(20) ? draw(65536, 524288) : draw(100, 20000)));
    left -= lengths.back();
  }
  const AttentionPool pool = LayInOrder(lengths, std::vector<int64_t>(64, 65536));
  const auto grid = AttentionCost::Grid({128, 1024, 16384}, {128, 8192, 131072},
                                        {3, 2, 1.7, 2.5, 1.5, 1.4, 2.5, 1.4, 1.3});
  ASSERT_TRUE(grid.ok());
  for (const double tolerance : {0.01, 0.02, 0.05, 0.15}) {
    std::vector<size_t> tasks;
    for (const AttentionCost& cost : {AttentionCost::PerPair(1), *grid}) {
      const auto plan = PlanDisaggregation(pool, cost, {.tolerance = tolerance});
      const double mean = std::accumulate(plan.load.begin(), plan.load.end(), 0.0) / 64;
      EXPECT_LE(*std::max_element(plan.load.begin(), plan.load.end()) / mean, 1 + tolerance);
      EXPECT_LE(mean / *std::min_element(plan.load.begin(), plan.load.end()), 1 + tolerance);
      tasks.push_back(plan.tasks.size());
    }
    // A measured cost makes ranges longer and shorter, not more of them.
    EXPECT_LE(tasks[1], tasks[0] + 5);
  }
}

TEST(PlanDisaggregation, OfNoQueries) {
  AttentionPool pool = LayInOrder({1000, 50}, {1050, 0});
  for (PooledDocument& document : pool.documents) document.q_begin = document.length;
  const auto plan = PlanDisaggregation(pool, AttentionCost::PerPair(1), {});
  EXPECT_TRUE(plan.tasks.empty());
  EXPECT_EQ(plan.load, (std::vector<double>{0, 0}));
}

// Beside a long document, short ones are most of the queries and next to no work: one server could
// take them all.
TEST(PlanDisaggregation, DedicatedServersShareShortDocumentsEvenly) {
  std::vector<int64_t> lengths(7 * 64, 256);
  lengths.push_back(64 * 256);
  AttentionPool pool =
      LayInOrder(lengths, {2 * 16384, 2 * 16384, 2 * 16384, 2 * 16384, 0, 0, 0, 0});
  pool.speed = {0, 0, 0, 0, 1, 1, 1, 1};
  const auto plan = PlanDisaggregation(pool, AttentionCost::PerPair(1), {});
  ExpectCoverage(pool, plan, kShard);
  ExpectBalance(pool, AttentionCost::PerPair(1), plan, 0.05);
  std::vector<int64_t> queries(8, 0);
  for (const ServerTask& task : plan.tasks) queries[static_cast<size_t>(task.server)] += task.q_len;
  EXPECT_LT(*std::max_element(queries.begin(), queries.end()), 1.3 * 2 * 16384);
}

TEST(PlanDisaggregation, AnOwnerWithoutSpeedServesNothing) {
  AttentionPool pool = LayInOrder({20000, 30000, 7, 10000}, {30000, 30007, 0, 0});
  pool.speed = {0, 0, 1, 2};
  const auto plan = PlanDisaggregation(pool, AttentionCost::PerPair(1), {.tolerance = 0.02});
  ExpectCoverage(pool, plan, kShard);
  ExpectBalance(pool, AttentionCost::PerPair(1), plan, 0.02);
  EXPECT_EQ(plan.load[0] + plan.load[1], 0);
  EXPECT_NEAR(plan.load[3] / plan.load[2], 2, 0.1);
}

}  // namespace
}  // namespace evenkeel
