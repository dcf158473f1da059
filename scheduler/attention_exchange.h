// Chains of exchanges between servers, drawn at random: what PlanDisaggregation does after
// LowerTraffic (scheduler/attention_search.h), which takes one server out of one document at a
// time. Pure and deterministic.
#pragma once

#include <cstdint>

#include "scheduler/attention_pool.h"
#include "scheduler/attention_shares.h"

namespace evenkeel {

// Lowers the bytes of the busiest ranks. A server may have several shares of a document afterwards.
// Loads stay within 1 + `tolerance` of the mean if they are.
void ExchangeShares(const AttentionPool& pool, int64_t shard_tokens, double tolerance,
                    SharedWork* work);

}  // namespace evenkeel
