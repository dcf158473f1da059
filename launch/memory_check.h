// Whether a run fits into this host's memory, asked before anything is allocated.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "launch/run_config.h"
#include "scheduler/memory_plan.h"

namespace evenkeel {

// The memory plan of one rank: a micro-batch of `micro_batch_size` samples.
MemoryPlan PlanRankMemory(const RunConfig& config, int64_t micro_batch_size, Recompute recompute);

// Fails with kResourceExhausted if `local_ranks` ranks together need more than `host_bytes`. The
// message says by how much, and the nearest settings that fit.
absl::Status CheckFits(const RunConfig& config, int local_ranks, int64_t host_bytes);

}  // namespace evenkeel
