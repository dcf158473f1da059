// Random batches, their pools of attention, and random plans of them: any cut, any server.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "parallel/sequence_layout.h"
#include "scheduler/attention_cost.h"
#include "scheduler/disaggregation_plan.h"
#include "scheduler/pool_layout.h"

namespace evenkeel::testing_support {

// The same on every rank and machine.
class PoolRandom {
 public:
  explicit PoolRandom(uint64_t seed) : engine_(seed) {}
  // In [low, high].
  int64_t operator()(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  bool OneIn(int64_t n) { return (*this)(1, n) == 1; }
  std::vector<int> Permutation(int size) {
    std::vector<int> order(static_cast<size_t>(size));
    std::iota(order.begin(), order.end(), 0);
    for (int i = size - 1; i > 0; --i) {
      std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>((*this)(0, i))]);
    }
    return order;
  }

 private:
  std::mt19937_64 engine_;
};

struct PoolDraw {
  std::vector<PooledBatch> batches;  // over disjoint ranks
  AttentionPool pools[2];            // by nano-batch
  std::vector<int64_t> rows;         // of each rank of the pool
  std::vector<int64_t> first_rows;   // of those, of the first nano-batch
};

// Batches of up to `most` tokens a document over ranks in any order; some ranks are left over
// (dedicated servers, stages without a micro-batch). Documents may be empty, of one token, or
// longer than several ranks' shares.
inline PoolDraw RandomPools(PoolRandom& draw, int num_ranks, int64_t most) {
  PoolDraw result;
  std::vector<int> ranks = draw.Permutation(num_ranks);
  const auto left_over = static_cast<size_t>(draw.OneIn(3) ? draw(0, num_ranks - 1) : 0);
  while (ranks.size() > left_over) {
    PooledBatch batch;
    for (int64_t cp = draw(1, 4); cp > 0 && ranks.size() > left_over; --cp) {
      batch.ranks.push_back(ranks.back());
      ranks.pop_back();
    }
    batch.cu_seqlens = {0};
    for (int64_t n = draw.OneIn(8) ? 0 : draw(1, 6); n > 0; --n) {
      const int64_t longest[] = {0, 1, 3, most / 8, most};
      batch.cu_seqlens.push_back(batch.cu_seqlens.back() + draw(0, longest[draw(0, 4)]));
    }
    result.batches.push_back(std::move(batch));
  }
  result.rows.assign(static_cast<size_t>(num_ranks), 0);
  result.first_rows = result.rows;
  for (const PooledBatch& batch : result.batches) {
    const auto layout = SequenceLayout::Make(SequenceSplit::kHalves, batch.cu_seqlens,
                                             static_cast<int>(batch.ranks.size()));
    for (size_t i = 0; i < batch.ranks.size(); ++i) {
      const auto rank = static_cast<size_t>(batch.ranks[i]);
      result.rows[rank] = layout.rows()[i];
      result.first_rows[rank] = RowsOfFirstHalf(layout, static_cast<int>(i));
    }
  }
  for (int n = 0; n < 2; ++n) {
    AttentionPool& pool = result.pools[n];
    pool.num_ranks = num_ranks;
    pool.speed.assign(static_cast<size_t>(num_ranks), 1);
    FillPool(result.batches, n == 0 ? NanoBatch::kFirst : NanoBatch::kSecond, pool);
  }
  return result;
}

// What a plan promises of its list of tasks: sorted, and those that touch on a server are one. The
// loads are in pairs of query and key.
inline DisaggregationPlan PlanOfTasks(const AttentionPool& pool, std::vector<ServerTask> tasks) {
  std::sort(tasks.begin(), tasks.end(), [](const ServerTask& a, const ServerTask& b) {
    return std::pair(std::pair(a.server, a.document), a.q_begin) <
           std::pair(std::pair(b.server, b.document), b.q_begin);
  });
  DisaggregationPlan plan;
  plan.load.assign(static_cast<size_t>(pool.num_ranks), 0);
  for (const ServerTask& task : tasks) {
    plan.load[static_cast<size_t>(task.server)] += CausalPairs(task.q_len, task.kv_len());
    if (!plan.tasks.empty()) {
      ServerTask& last = plan.tasks.back();
      if (last.server == task.server && last.document == task.document &&
          last.kv_len() == task.q_begin) {
        last.q_len += task.q_len;
        continue;
      }
    }
    plan.tasks.push_back(task);
  }
  return plan;
}

// Documents cut anywhere, each part for any server; or, now and then, whole documents.
inline DisaggregationPlan RandomPlan(PoolRandom& draw, const AttentionPool& pool) {
  std::vector<ServerTask> tasks;
  for (size_t d = 0; d < pool.documents.size(); ++d) {
    const PooledDocument& document = pool.documents[d];
    const int64_t longest = draw.OneIn(3) ? document.length : draw(1, 40);
    for (int64_t begin = document.q_begin; begin < document.length;) {
      const int64_t rest = document.length - begin;
      const int64_t count =
          draw.OneIn(4) ? std::min(rest, longest) : draw(1, std::min(rest, longest));
      // Those that stay where they are have a way of their own.
      const int owner = pool.pieces[static_cast<size_t>(document.first_piece)].owner;
      const int server = draw.OneIn(3) ? owner : static_cast<int>(draw(0, pool.num_ranks - 1));
      tasks.push_back({static_cast<int32_t>(d), server, begin, count});
      begin += count;
    }
  }
  return PlanOfTasks(pool, std::move(tasks));
}

// The same with servers[s] in the place of server s.
inline DisaggregationPlan WithServers(const AttentionPool& pool, const DisaggregationPlan& plan,
                                      const std::vector<int>& servers) {
  std::vector<ServerTask> tasks = plan.tasks;
  for (ServerTask& task : tasks) task.server = servers[static_cast<size_t>(task.server)];
  return PlanOfTasks(pool, std::move(tasks));
}

}  // namespace evenkeel::testing_support
