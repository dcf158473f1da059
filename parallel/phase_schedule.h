// The pipeline schedule under which all stages run the same phase at the same time, so that their
// attention can be pooled (DistCA, arXiv 2510.18121, section 4.1): a step is a list of ticks, in
// each of which every stage runs the forward pass of one micro-batch, or every stage the backward
// pass of one. A stage whose micro-batch of the tick does not exist, in warm-up and drain, has none
// of its own: it serves attention for the others. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/pipeline_schedule.h"

namespace evenkeel {

struct PhaseTick {
  PipelinePhase phase = PipelinePhase::kForward;
  int64_t index = 0;  // among the ticks of its phase

  bool operator==(const PhaseTick&) const = default;
};

// Returns the ticks of a step in order: as many forward ticks as there are ranks, then a backward
// and a forward one in turn, then the backward ones that are left; m + ranks - 1 of each for m
// micro-batches, none for none.
std::vector<PhaseTick> SamePhaseTicks(int ranks, int64_t micro_batches);

// Those of forward passes that no backward pass follows: m + ranks - 1, none for none.
std::vector<PhaseTick> ForwardTicks(int ranks, int64_t micro_batches);

// The micro-batch whose pass `rank` runs in the tick, or -1. Forward tick i is that of micro-batch
// i - rank, backward tick i that of micro-batch i - (ranks - 1 - rank).
int64_t MicroBatchAt(const PhaseTick& tick, int ranks, int64_t micro_batches, int rank);

// The same as the actions of a schedule. Rank r holds the activations of up to
// 2 (ranks - r) - 1 micro-batches, where 1F1B holds ranks - r: the price of equal phases.
PipelineSchedule SamePhaseSchedule(int ranks, int64_t micro_batches);

}  // namespace evenkeel
