#include "parallel/phase_schedule.h"

#include <algorithm>

namespace evenkeel {

std::vector<PhaseTick> SamePhaseTicks(int ranks, int64_t micro_batches) {
  std::vector<PhaseTick> ticks;
  if (micro_batches == 0) return ticks;
  const int64_t count = micro_batches + ranks - 1;  // of each phase
  for (int64_t i = 0; i < ranks; ++i) ticks.push_back({PipelinePhase::kForward, i});
  for (int64_t i = 0; i < count; ++i) {
    ticks.push_back({PipelinePhase::kBackward, i});
    if (ranks + i < count) ticks.push_back({PipelinePhase::kForward, ranks + i});
  }
  return ticks;
}

std::vector<PhaseTick> ForwardTicks(int ranks, int64_t micro_batches) {
  std::vector<PhaseTick> ticks;
  if (micro_batches == 0) return ticks;
  for (int64_t i = 0; i < micro_batches + ranks - 1; ++i) {
    ticks.push_back({PipelinePhase::kForward, i});
  }
  return ticks;
}

int64_t MicroBatchAt(const PhaseTick& tick, int ranks, int64_t micro_batches, int rank) {
  const int64_t before = tick.phase == PipelinePhase::kForward ? rank : ranks - 1 - rank;
  const int64_t micro_batch = tick.index - before;
  return micro_batch >= 0 && micro_batch < micro_batches ? micro_batch : -1;
}

PipelineSchedule SamePhaseSchedule(int ranks, int64_t micro_batches) {
  PipelineSchedule schedule;
  schedule.num_ranks = ranks;
  schedule.num_micro_batches = micro_batches;
  schedule.actions.resize(static_cast<size_t>(ranks));
  for (const PhaseTick& tick : SamePhaseTicks(ranks, micro_batches)) {
    for (int rank = 0; rank < ranks; ++rank) {
      const int64_t micro_batch = MicroBatchAt(tick, ranks, micro_batches, rank);
      if (micro_batch < 0) continue;
      schedule.actions[static_cast<size_t>(rank)].push_back({tick.phase, micro_batch, 0});
    }
  }
  return schedule;
}

}  // namespace evenkeel
