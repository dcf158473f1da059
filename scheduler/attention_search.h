// Where in a document each of its servers computes its share, and who takes part in which document:
// the second part of PlanDisaggregation. A local search that lowers the bytes of the busiest ranks
// while the servers' seconds stay about as they are. Pure and deterministic.
#pragma once

#include <cstdint>

#include "scheduler/attention_pool.h"
#include "scheduler/attention_shares.h"

namespace evenkeel {

// Puts the shares of each document in the order of their queries, and exchanges shares; loads stay
// within 1 + `tolerance` of the mean if they are.
void LowerTraffic(const AttentionPool& pool, int64_t shard_tokens, double tolerance,
                  SharedWork* work);

}  // namespace evenkeel
