// The pipeline schedule under which all stages run the same phase at the same time, so that their
// attention can be pooled (DistCA, arXiv 2510.18121, section 4.1): a step is a list of ticks, in
// each of which every rank runs the forward pass of one micro-batch through one of its chunks, or
// every rank the backward pass of one. A rank whose micro-batch of the tick does not exist, in
// warm-up and drain, has none of its own: it serves attention for the others. Pure.
//
// Chunks, several a rank with virtual stages, are as in parallel/pipeline_schedule.h: micro-batches
// pass in groups of as many as there are ranks, a group through all chunks before the next one. So
// rank r runs the `k`-th pass of this order, chunk (k mod chunks ranks) / ranks of micro-batch
// k / (chunks ranks) ranks + k mod ranks, in forward tick k + r, one tick after rank r - 1, and
// rank 0 one tick after rank ranks - 1 has run the chunk before. Backward likewise from the last
// stage on.
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

// Returns the ticks of a step in order: chunks * ranks forward ticks, then a backward and a forward
// one in turn, then the backward ones that are left. Of each phase chunks * m + ranks - 1 for m
// micro-batches, a multiple of `ranks`; where m is none, a group has as many ticks as if it were
// full, but for the last ones, which would be empty. None for no micro-batch.
std::vector<PhaseTick> SamePhaseTicks(int ranks, int chunks, int64_t micro_batches);
// Those of forward passes that no backward pass follows.
std::vector<PhaseTick> ForwardTicks(int ranks, int chunks, int64_t micro_batches);

// A rank's pass of a tick.
struct TickPass {
  int64_t micro_batch = -1;  // -1: there is none
  int chunk = 0;

  bool exists() const { return micro_batch >= 0; }
};
TickPass PassAt(const PhaseTick& tick, int ranks, int chunks, int64_t micro_batches, int rank);

// The same as the actions of a schedule. With one chunk rank r holds the activations of up to
// 2 (ranks - r) - 1 micro-batches, where 1F1B holds ranks - r: the price of equal phases. With more
// it is interleaved 1F1B.
PipelineSchedule SamePhaseSchedule(int ranks, int chunks, int64_t micro_batches);

}  // namespace evenkeel
