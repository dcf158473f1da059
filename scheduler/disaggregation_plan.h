// Which server computes which part of a pool's core attention, so that all have the same to do and
// little has to travel. Pure and deterministic: every rank makes the same plan, and none is sent.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "scheduler/attention_cost.h"
#include "scheduler/attention_pool.h"

namespace evenkeel {

// Queries [q_begin, q_begin + q_len) of a document against its keys [0, q_begin + q_len).
struct ServerTask {
  int32_t document = 0;
  int32_t server = 0;
  int64_t q_begin = 0;
  int64_t q_len = 0;

  int64_t kv_len() const { return q_begin + q_len; }
};

struct DisaggregationOptions {
  // Of the mean load (per speed): no server has more than (1 + tolerance) of it, and none less than
  // 1 / (1 + tolerance) of it, as far as shards allow.
  double tolerance = 0.05;
  // Queries are cut at multiples of this, counted from the document's beginning.
  int64_t shard_tokens = 128;
};

struct DisaggregationPlan {
  // By (server, document, q_begin); every query to compute is in exactly one. Queries of a document
  // that touch on a server are one task.
  std::vector<ServerTask> tasks;
  std::vector<double> load;  // [ranks] seconds a server of speed 1 would take for the rank's tasks
  // [ranks] bytes of queries, keys and values to and from other ranks in a forward pass. The keys
  // of a document reach a server once, up to the last one that a task of its needs; what a server
  // owns does not travel.
  std::vector<int64_t> send_bytes, recv_bytes;
};

DisaggregationPlan PlanDisaggregation(const AttentionPool& pool, const AttentionCost& cost,
                                      const DisaggregationOptions& options);

// The plan without disaggregation: every rank computes the queries it holds.
DisaggregationPlan PlanInPlace(const AttentionPool& pool, const AttentionCost& cost);

// What goes from one rank to another in a forward pass.
struct AttentionLink {
  int32_t from = 0;
  int32_t to = 0;
  int64_t q_tokens = 0;
  int64_t kv_tokens = 0;
};

// Of any tasks, sorted as in a plan: all links that are not empty, by (from, to). from != to.
std::vector<AttentionLink> LinksOf(const AttentionPool& pool, absl::Span<const ServerTask> tasks);

// Whether the task is a document whose keys no other task needs, on the rank that holds it: its
// rows may stay where they are.
bool IsResident(const AttentionPool& pool, const ServerTask& task);

// What servers hold themselves of their tasks' rows, from == to, by rank; none is empty. Residents
// are left out if there are any.
std::vector<AttentionLink> KeptRows(const AttentionPool& pool, absl::Span<const ServerTask> tasks,
                                    bool has_residents);

// Divides links into rounds in each of which a rank sends to at most one rank and receives from at
// most one (an edge colouring; there are as many rounds as the busiest rank has links on one side).
// Returns indices into `links` by round.
std::vector<std::vector<int32_t>> MessageRounds(int num_ranks,
                                                absl::Span<const AttentionLink> links);

}  // namespace evenkeel
