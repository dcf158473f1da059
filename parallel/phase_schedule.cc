#include "parallel/phase_schedule.h"

#include <algorithm>

namespace evenkeel {
namespace {

// Ticks of one phase.
int64_t CountTicks(int ranks, int chunks, int64_t micro_batches) {
  if (micro_batches == 0) return 0;
  const int64_t full_groups = (micro_batches - 1) / ranks;
  const int64_t in_last = micro_batches - full_groups * ranks;
  // Up to the last pass of the last group, of which there is one in its last chunk.
  return (full_groups * chunks + chunks - 1) * ranks + in_last + ranks - 1;
}

}  // namespace

std::vector<PhaseTick> SamePhaseTicks(int ranks, int chunks, int64_t micro_batches) {
  std::vector<PhaseTick> ticks;
  const int64_t count = CountTicks(ranks, chunks, micro_batches);
  if (count == 0) return ticks;
  // The first backward pass follows its forward pass at once.
  const int64_t before = int64_t{1} * chunks * ranks;
  for (int64_t i = 0; i < before; ++i) ticks.push_back({PipelinePhase::kForward, i});
  for (int64_t i = 0; i < count; ++i) {
    ticks.push_back({PipelinePhase::kBackward, i});
    if (before + i < count) ticks.push_back({PipelinePhase::kForward, before + i});
  }
  return ticks;
}

std::vector<PhaseTick> ForwardTicks(int ranks, int chunks, int64_t micro_batches) {
  std::vector<PhaseTick> ticks;
  for (int64_t i = 0; i < CountTicks(ranks, chunks, micro_batches); ++i) {
    ticks.push_back({PipelinePhase::kForward, i});
  }
  return ticks;
}

TickPass PassAt(const PhaseTick& tick, int ranks, int chunks, int64_t micro_batches, int rank) {
  const bool is_forward = tick.phase == PipelinePhase::kForward;
  const int64_t pass = tick.index - (is_forward ? rank : ranks - 1 - rank);
  if (pass < 0) return TickPass();
  const int64_t group = int64_t{1} * chunks * ranks;
  const int64_t micro_batch = pass / group * ranks + pass % ranks;
  const auto chunk = static_cast<int>(pass % group / ranks);
  if (micro_batch >= micro_batches) return TickPass();
  return {micro_batch, is_forward ? chunk : chunks - 1 - chunk};
}

PipelineSchedule SamePhaseSchedule(int ranks, int chunks, int64_t micro_batches) {
  PipelineSchedule schedule;
  schedule.num_ranks = ranks;
  schedule.num_chunks = chunks;
  schedule.num_micro_batches = micro_batches;
  schedule.actions.resize(static_cast<size_t>(ranks));
  for (const PhaseTick& tick : SamePhaseTicks(ranks, chunks, micro_batches)) {
    for (int rank = 0; rank < ranks; ++rank) {
      const TickPass pass = PassAt(tick, ranks, chunks, micro_batches, rank);
      if (!pass.exists()) continue;
      schedule.actions[static_cast<size_t>(rank)].push_back(
          {tick.phase, pass.micro_batch, pass.chunk});
    }
  }
  return schedule;
}

}  // namespace evenkeel
