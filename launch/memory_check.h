// Whether a run fits into the memory of its hosts or GPUs, asked before anything is allocated.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "launch/rank_runtime.h"
#include "launch/run_config.h"
#include "scheduler/memory_plan.h"

namespace evenkeel {

// The memory plan of the rank that needs most, of a run on `world_size` ranks with micro-batches of
// `micro_batch_size` samples. Fails as PlanParallel does.
absl::StatusOr<MemoryPlan> PlanRankMemory(const RunConfig& config, int64_t world_size,
                                          int64_t micro_batch_size, Recompute recompute);

// Fails with kResourceExhausted if ranks of `layout`, the config's, that share a memory need more
// together; those are neighbours, as mpirun fills host by host. The message says by how much, and
// the nearest settings that fit. If only the buffers of disaggregated attention are too much, of
// which most steps take a part of what is planned, that is the `warning`, which is else left alone.
absl::Status CheckFits(const RunConfig& config, const ParallelPlan& layout,
                       const MemoryBudget& memory, std::string* warning);

}  // namespace evenkeel
