// Whether a run fits into the memory of its host or GPU, asked before anything is allocated.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "launch/rank_runtime.h"
#include "launch/run_config.h"
#include "scheduler/memory_plan.h"

namespace evenkeel {

// The memory plan of one rank: a micro-batch of `micro_batch_size` samples.
MemoryPlan PlanRankMemory(const RunConfig& config, int64_t micro_batch_size, Recompute recompute);

// Fails with kResourceExhausted if the ranks that share the memory need more together. The message
// says by how much, and the nearest settings that fit.
absl::Status CheckFits(const RunConfig& config, const MemoryBudget& memory);

}  // namespace evenkeel
