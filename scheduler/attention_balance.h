// The search behind PlanDisaggregation: moves ranges of queries from servers with too much to do to
// those with too little. Pure and deterministic.
#pragma once

#include <vector>

#include "scheduler/attention_cost.h"
#include "scheduler/attention_pool.h"
#include "scheduler/disaggregation_plan.h"

namespace evenkeel {

// Returns tasks in no order; those of a document on a server may touch.
std::vector<ServerTask> BalanceTasks(const AttentionPool& pool, const AttentionCost& cost,
                                     const DisaggregationOptions& options);

}  // namespace evenkeel
