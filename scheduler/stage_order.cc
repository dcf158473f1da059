#include "scheduler/stage_order.h"

#include "parallel/phase_schedule.h"

namespace evenkeel {

std::vector<PassEvent> PassEvents(const MeshShape& mesh, int pp_rank, int num_chunks,
                                  int64_t micro_batches, bool same_phase) {
  std::vector<PassEvent> events;
  if (mesh.pp == 1) {
    for (int64_t i = 0; i < micro_batches; ++i) {
      events.push_back({PassPhase::kBegin, 0, 0, false});
      events.push_back({PassPhase::kForward, 0, 0, false});
      events.push_back({PassPhase::kBackward, 0, 0, i + 1 == micro_batches});
    }
    return events;
  }
  const PipelineSchedule schedule =
      same_phase ? SamePhaseSchedule(mesh.pp, num_chunks, micro_batches)
                 : InterleavedOneForwardOneBackward(mesh.pp, num_chunks, micro_batches);
  const std::vector<PipelineAction>& actions = schedule.actions[static_cast<size_t>(pp_rank)];
  const std::vector<int> slots = ActivationSlots(schedule, pp_rank);
  std::vector<int64_t> left(static_cast<size_t>(num_chunks), micro_batches);
  std::vector<bool> has_begun(actions.size(), false);
  const auto begin = [&](size_t i) {
    if (has_begun[i]) return;
    has_begun[i] = true;
    if (actions[i].phase == PipelinePhase::kForward) {
      events.push_back({PassPhase::kBegin, actions[i].chunk, slots[i], false});
    }
  };
  for (size_t i = 0; i < actions.size(); ++i) {
    const PipelineAction& action = actions[i];
    begin(i);
    if (!same_phase && i + 1 < actions.size() && slots[i + 1] != slots[i]) begin(i + 1);
    if (action.phase == PipelinePhase::kForward) {
      events.push_back({PassPhase::kForward, action.chunk, slots[i], false});
    } else {
      const bool is_final = --left[static_cast<size_t>(action.chunk)] == 0;
      events.push_back({PassPhase::kBackward, action.chunk, slots[i], is_final});
    }
  }
  return events;
}

}  // namespace evenkeel
