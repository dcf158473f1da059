// What comes before tasks are cut: who computes how much of what, and the searches that lower the
// traffic of that. Seconds are counted again, and the searches' measure against the plan's links.
#include "scheduler/attention_search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "scheduler/attention_exchange.h"
#include "scheduler/attention_traffic.h"
#include "scheduler/disaggregation_plan.h"
#include "scheduler/document_placement.h"

namespace evenkeel {
namespace {

constexpr int64_t kShard = 128;

AttentionPool RandomPool(uint64_t seed) {
  std::mt19937_64 draw(seed);
  const int ranks = 2 + static_cast<int>(draw() % 30);
  std::vector<int64_t> lengths;
  for (int64_t left = ranks * int64_t{16384}; left > 0; left -= lengths.back()) {
    const int64_t most = draw() % 12 == 0 ? 100000 : 3000;
    lengths.push_back(std::min<int64_t>(left, 1 + static_cast<int64_t>(draw() % most)));
  }
  const auto placement =
      draw() % 2 == 0 ? DocumentPlacement::kInOrder : DocumentPlacement::kHeadTail;
  AttentionPool pool = PlaceDocuments(lengths, ranks, 16384, placement);
  pool.bytes.q = 1024;
  pool.bytes.kv = 512;
  if (draw() % 3 == 0) pool.speed[0] = 0;
  for (PooledDocument& document : pool.documents) {
    if (draw() % 5 == 0) document.q_begin = static_cast<int64_t>(draw() % document.length);
  }
  return pool;
}

// Every document has all its seconds, a server once or at least not next to itself, and loads are
// what they are said to be.
void ExpectWork(const AttentionPool& pool, const SharedWork& work, bool a_server_once = true) {
  std::map<int32_t, double> seconds;
  std::vector<double> load(static_cast<size_t>(pool.num_ranks), 0);
  for (const KeptDocument& kept : work.kept) {
    EXPECT_EQ(seconds.count(kept.document), 0);
    seconds[kept.document] = kept.seconds;
    load[static_cast<size_t>(kept.owner)] += kept.seconds;
  }
  for (const SharedDocument& shared : work.documents) {
    EXPECT_EQ(seconds.count(shared.document), 0);
    std::vector<int32_t> servers;
    for (const DocumentShare& share : shared.shares) {
      EXPECT_GT(share.seconds, 0);
      EXPECT_GT(pool.speed[static_cast<size_t>(share.server)], 0);
      seconds[shared.document] += share.seconds;
      load[static_cast<size_t>(share.server)] += share.seconds;
      servers.push_back(share.server);
    }
    if (a_server_once) std::sort(servers.begin(), servers.end());
    EXPECT_EQ(std::adjacent_find(servers.begin(), servers.end()), servers.end());
  }
  for (size_t d = 0; d < pool.documents.size(); ++d) {
    const PooledDocument& document = pool.documents[d];
    const double pairs = CausalPairs(document.length - document.q_begin, document.length);
    EXPECT_NEAR(seconds[static_cast<int32_t>(d)], pairs, 1e-6 * work.mean) << "document " << d;
  }
  for (size_t s = 0; s < load.size(); ++s) EXPECT_NEAR(load[s], work.load[s], 1e-6 * work.mean);
}

double Busiest(const AttentionPool& pool, const AttentionTraffic& traffic) {
  double most = 0;
  for (int32_t r = 0; r < pool.num_ranks; ++r) {
    most = std::max({most, traffic.send(r), traffic.recv(r)});
  }
  return most;
}

AttentionTraffic TrafficOf(const AttentionPool& pool, const SharedWork& work) {
  AttentionTraffic traffic(pool, kShard);
  for (const SharedDocument& shared : work.documents) traffic.Add(shared);
  return traffic;
}

void ExpectLoads(const AttentionPool& pool, const SharedWork& work, double tolerance) {
  for (size_t s = 0; s < work.load.size(); ++s) {
    EXPECT_LE(work.load[s], work.mean * pool.speed[s] * (1 + tolerance + 1e-7));
    EXPECT_GE(work.load[s], work.mean * pool.speed[s] / (1 + tolerance + 1e-7));
  }
}

TEST(LowerTraffic, MovesNoWorkOutOfBounds) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    const AttentionPool pool = RandomPool(seed);
    SharedWork work = ShareDocuments(pool, AttentionCost::PerPair(1), 0.03);
    ExpectWork(pool, work);
    const double before = Busiest(pool, TrafficOf(pool, work));
    LowerTraffic(pool, kShard, 0.05, &work);
    ExpectWork(pool, work);
    ExpectLoads(pool, work, 0.05);
    EXPECT_LE(Busiest(pool, TrafficOf(pool, work)), 1.05 * before);
    if (HasFailure()) FAIL() << "seed " << seed;
  }
}

TEST(ExchangeShares, LowersTheBusiestWithinBounds) {
  double before = 0, after = 0;
  int several = 0;  // documents of which a server has several shares
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    const AttentionPool pool = RandomPool(seed);
    SharedWork work = ShareDocuments(pool, AttentionCost::PerPair(1), 0.03);
    LowerTraffic(pool, kShard, 0.05, &work);
    const double busiest = Busiest(pool, TrafficOf(pool, work));
    SharedWork again = work;
    ExchangeShares(pool, kShard, 0.05, &work);
    ExpectWork(pool, work, false);
    ExpectLoads(pool, work, 0.05);
    before += busiest;
    after += Busiest(pool, TrafficOf(pool, work));
    // The sum over ranks falls, of which the busiest is nearly all.
    EXPECT_LE(Busiest(pool, TrafficOf(pool, work)), 1.1 * busiest);
    ExchangeShares(pool, kShard, 0.05, &again);
    ASSERT_EQ(again.documents.size(), work.documents.size());
    for (size_t d = 0; d < work.documents.size(); ++d) {
      const auto& shares = work.documents[d].shares;
      ASSERT_EQ(again.documents[d].shares.size(), shares.size());
      std::map<int32_t, int> count;
      for (size_t i = 0; i < shares.size(); ++i) {
        EXPECT_EQ(again.documents[d].shares[i].server, shares[i].server);
        EXPECT_EQ(again.documents[d].shares[i].seconds, shares[i].seconds);
        several += ++count[shares[i].server] == 2 ? 1 : 0;
      }
    }
    if (HasFailure()) FAIL() << "seed " << seed;
  }
  EXPECT_LT(after, 0.96 * before);
  EXPECT_GT(several, 60);
}

TEST(AttentionTraffic, CountsWhatLinksCount) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    const AttentionPool pool = RandomPool(seed);
    SharedWork work = ShareDocuments(pool, AttentionCost::PerPair(1), 0.03);
    LowerTraffic(pool, kShard, 0.05, &work);
    ExchangeShares(pool, kShard, 0.05, &work);
    AttentionTraffic traffic(pool, kShard);
    std::vector<ServerTask> tasks;
    for (const SharedDocument& shared : work.documents) {
      traffic.Add(shared);
      const PooledDocument& document = pool.documents[static_cast<size_t>(shared.document)];
      std::vector<int64_t> ends;
      CutShares(document, kShard, shared.shares, &ends);
      int64_t begin = document.q_begin;
      for (size_t i = 0; i < ends.size(); ++i) {
        if (ends[i] > begin) {
          tasks.push_back({shared.document, shared.shares[i].server, begin, ends[i] - begin});
        }
        begin = ends[i];
      }
    }
    std::sort(tasks.begin(), tasks.end(), [](const ServerTask& a, const ServerTask& b) {
      if (a.server != b.server) return a.server < b.server;
      return a.document != b.document ? a.document < b.document : a.q_begin < b.q_begin;
    });
    std::vector<int64_t> send(static_cast<size_t>(pool.num_ranks), 0), recv = send;
    for (const AttentionLink& link : LinksOf(pool, tasks)) {
      const int64_t bytes = link.q_tokens * pool.bytes.q + link.kv_tokens * pool.bytes.kv;
      send[static_cast<size_t>(link.from)] += bytes;
      recv[static_cast<size_t>(link.to)] += bytes;
    }
    for (int32_t r = 0; r < pool.num_ranks; ++r) {
      EXPECT_EQ(traffic.send(r), static_cast<double>(send[static_cast<size_t>(r)]));
      EXPECT_EQ(traffic.recv(r), static_cast<double>(recv[static_cast<size_t>(r)]));
    }
    if (HasFailure()) FAIL() << "seed " << seed;
  }
}

}  // namespace
}  // namespace evenkeel
