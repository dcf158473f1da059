// The last part of PlanDisaggregation: shares become ranges of queries, and where these miss the
// bounds, because shards are coarse or a measured cost does not add up, shards move. Pure and
// deterministic.
#pragma once

#include <vector>

#include "scheduler/attention_cost.h"
#include "scheduler/attention_pool.h"
#include "scheduler/attention_shares.h"
#include "scheduler/disaggregation_plan.h"

namespace evenkeel {

// Returns tasks in no order; those of a document on a server may touch.
std::vector<ServerTask> CutToTasks(const AttentionPool& pool, const AttentionCost& cost,
                                   const DisaggregationOptions& options, SharedWork work);

}  // namespace evenkeel
