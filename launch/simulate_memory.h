// The memory that a simulated layout takes.
#pragma once

#include "absl/status/statusor.h"
#include "launch/simulate_study.h"

namespace evenkeel {

// Returns the bytes on the pipeline rank that needs most, with micro-batches as large as they may
// get and as many passes in flight as the schedule holds: what `evenkeel plan` counts, without what
// attention servers receive, and with the keys and values that baselines gather.
absl::StatusOr<double> LayoutBytes(const SimCase& study, const SimLayout& layout);

}  // namespace evenkeel
