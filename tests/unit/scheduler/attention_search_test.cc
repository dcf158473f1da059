// The two halves before tasks are cut: who computes how much of what, and the search that lowers
// the traffic of that. Seconds are counted again, and the search's measure against the plan's
// links.
#include "scheduler/attention_search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

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

// Every document has all its seconds, a server once, and loads are what they are said to be.
void ExpectWork(const AttentionPool& pool, const SharedWork& work) {
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
    std::sort(servers.begin(), servers.end());
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

TEST(LowerTraffic, MovesNoWorkOutOfBounds) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    const AttentionPool pool = RandomPool(seed);
    SharedWork work = ShareDocuments(pool, AttentionCost::PerPair(1), 0.03);
    ExpectWork(pool, work);
    AttentionTraffic before(pool, kShard);
    for (const SharedDocument& shared : work.documents) before.Add(shared);
    LowerTraffic(pool, kShard, 0.05, &work);
    ExpectWork(pool, work);
    for (size_t s = 0; s < work.load.size(); ++s) {
      EXPECT_LE(work.load[s], work.mean * pool.speed[s] * 1.0500001);
      EXPECT_GE(work.load[s], work.mean * pool.speed[s] / 1.0500001);
    }
    AttentionTraffic after(pool, kShard);
    for (const SharedDocument& shared : work.documents) after.Add(shared);
    EXPECT_LE(Busiest(pool, after), 1.05 * Busiest(pool, before));
    if (HasFailure()) FAIL() << "seed " << seed;
  }
}

TEST(AttentionTraffic, CountsWhatLinksCount) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    const AttentionPool pool = RandomPool(seed);
    SharedWork work = ShareDocuments(pool, AttentionCost::PerPair(1), 0.03);
    LowerTraffic(pool, kShard, 0.05, &work);
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
      return a.server != b.server ? a.server < b.server : a.document < b.document;
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
