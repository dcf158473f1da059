// How many bytes a rank sends in a training step, by axis and operation, before anything is
// started. It counts as CommLog does (parallel/axis_comm.h), call by call; a test holds the two
// together. docs/parallelism.md has the formulas. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "absl/types/span.h"
#include "scheduler/compute_shape.h"
#include "scheduler/model_shape.h"
#include "scheduler/rank_layout.h"

namespace evenkeel {

// Bytes by (axis, operation), as in CommLog::volumes(); what sends nothing is left out.
using CommVolume = std::map<std::pair<std::string, std::string>, double>;

// Of a step of the given micro-batches of this rank's replica (and of the update after it), as it
// is when a step came before. `shape`: of the rank's part.
CommVolume StepVolume(const ModelShape& shape, const RankLayout& layout,
                      const ComputeShape& compute, RecomputePlan recompute,
                      absl::Span<const MicroBatchTokens> micro_batches);

double TotalBytes(const CommVolume& volume);

}  // namespace evenkeel
