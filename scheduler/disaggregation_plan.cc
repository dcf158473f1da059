#include "scheduler/disaggregation_plan.h"

#include <algorithm>
#include <utility>

#include "scheduler/attention_balance.h"
#include "scheduler/attention_exchange.h"
#include "scheduler/attention_search.h"
#include "scheduler/attention_shares.h"

namespace evenkeel {
namespace {

// Of the tolerance, what shares use at first and what the search may use; the rest is left to
// shards being coarse.
constexpr double kOfTolerance = 0.6, kOfToleranceInSearch = 0.8;

// Sorts tasks, and joins those of a document that touch on a server.
void Normalize(std::vector<ServerTask>* tasks) {
  std::sort(tasks->begin(), tasks->end(), [](const ServerTask& a, const ServerTask& b) {
    if (a.server != b.server) return a.server < b.server;
    if (a.document != b.document) return a.document < b.document;
    return a.q_begin < b.q_begin;
  });
  size_t count = 0;
  for (const ServerTask& task : *tasks) {
    ServerTask* last = count > 0 ? &(*tasks)[count - 1] : nullptr;
    if (last != nullptr && last->server == task.server && last->document == task.document &&
        last->kv_len() == task.q_begin) {
      last->q_len += task.q_len;
    } else {
      (*tasks)[count++] = task;
    }
  }
  tasks->resize(count);
}

DisaggregationPlan PlanOf(const AttentionPool& pool, const AttentionCost& cost,
                          std::vector<ServerTask> tasks) {
  Normalize(&tasks);
  DisaggregationPlan plan;
  const auto ranks = static_cast<size_t>(pool.num_ranks);
  plan.load.assign(ranks, 0);
  for (const ServerTask& task : tasks) {
    plan.load[static_cast<size_t>(task.server)] += cost.Seconds(task.q_len, task.kv_len());
  }
  plan.send_bytes.assign(ranks, 0);
  plan.recv_bytes.assign(ranks, 0);
  for (const AttentionLink& link : LinksOf(pool, tasks)) {
    const int64_t bytes = link.q_tokens * pool.bytes.q + link.kv_tokens * pool.bytes.kv;
    plan.send_bytes[static_cast<size_t>(link.from)] += bytes;
    plan.recv_bytes[static_cast<size_t>(link.to)] += bytes;
  }
  plan.tasks = std::move(tasks);
  return plan;
}

}  // namespace

DisaggregationPlan PlanDisaggregation(const AttentionPool& pool, const AttentionCost& cost,
                                      const DisaggregationOptions& options) {
  SharedWork work = ShareDocuments(pool, cost, kOfTolerance * options.tolerance);
  LowerTraffic(pool, options.shard_tokens, kOfToleranceInSearch * options.tolerance, &work);
  ExchangeShares(pool, options.shard_tokens, kOfToleranceInSearch * options.tolerance, &work);
  return PlanOf(pool, cost, CutToTasks(pool, cost, options, std::move(work)));
}

DisaggregationPlan PlanInPlace(const AttentionPool& pool, const AttentionCost& cost) {
  std::vector<ServerTask> tasks;
  for (size_t d = 0; d < pool.documents.size(); ++d) {
    const PooledDocument& document = pool.documents[d];
    for (int32_t i = 0; i < document.num_pieces; ++i) {
      const DocumentPiece& piece = pool.pieces[static_cast<size_t>(document.first_piece + i)];
      const int64_t begin = std::max(piece.begin, document.q_begin);
      const int64_t end = piece.begin + piece.length;
      if (begin < end) {
        tasks.push_back({static_cast<int32_t>(d), piece.owner, begin, end - begin});
      }
    }
  }
  return PlanOf(pool, cost, std::move(tasks));
}

}  // namespace evenkeel
