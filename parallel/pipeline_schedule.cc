#include "parallel/pipeline_schedule.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace evenkeel {
namespace {

using Actions = std::vector<PipelineAction>;

std::string Name(const PipelineAction& action) {
  return absl::StrCat(action.phase == PipelinePhase::kForward ? "forward" : "backward",
                      " of micro-batch ", action.micro_batch, ", chunk ", action.chunk);
}

// The common order of one phase: groups of `ranks` micro-batches through all chunks, backward from
// the last chunk to the first.
Actions PhaseOrder(PipelinePhase phase, int ranks, int chunks, int64_t micro_batches) {
  Actions order;
  for (int64_t group = 0; group < micro_batches; group += ranks) {
    for (int c = 0; c < chunks; ++c) {
      const int chunk = phase == PipelinePhase::kForward ? c : chunks - 1 - c;
      for (int64_t micro = group; micro < std::min(group + ranks, micro_batches); ++micro) {
        order.push_back({phase, micro, chunk});
      }
    }
  }
  return order;
}

// `warmup` forwards, then a forward and a backward in turn, then the backwards that are left.
Actions Interleave(const Actions& forward, const Actions& backward, int64_t warmup) {
  const size_t ahead = std::min(static_cast<size_t>(warmup), forward.size());
  Actions actions(forward.begin(), forward.begin() + static_cast<int64_t>(ahead));
  for (size_t k = 0; k < backward.size(); ++k) {
    if (ahead + k < forward.size()) actions.push_back(forward[ahead + k]);
    actions.push_back(backward[k]);
  }
  return actions;
}

void CheckSizes(int ranks, int chunks, int64_t micro_batches) {
  EK_CHECK(ranks >= 1 && chunks >= 1 && micro_batches >= 0)
      << ranks << " ranks, " << chunks << " chunks, " << micro_batches << " micro-batches";
}

const Actions& ActionsOf(const PipelineSchedule& schedule, int rank) {
  EK_CHECK(rank >= 0 && static_cast<size_t>(rank) < schedule.actions.size())
      << "rank " << rank << " of " << schedule.actions.size();
  return schedule.actions[static_cast<size_t>(rank)];
}

// Which (micro-batch, place) pairs are done; a place is a stage, or a chunk of one rank.
class DoneTable {
 public:
  DoneTable(int places, int64_t micro_batches)
      : micro_batches_(micro_batches), done_(static_cast<size_t>(places * micro_batches), false) {}

  bool Get(int place, int64_t micro) const { return done_[At(place, micro)]; }
  void Set(int place, int64_t micro) { done_[At(place, micro)] = true; }

 private:
  size_t At(int place, int64_t micro) const {
    return static_cast<size_t>(place * micro_batches_ + micro);
  }

  int64_t micro_batches_;
  std::vector<bool> done_;
};

absl::Status Wrong(int rank, const std::string& what) {
  return absl::InternalError(absl::StrCat("pipeline schedule, rank ", rank, ": ", what));
}

// Checks one rank by itself: everything once, backward after forward.
absl::Status CheckRank(const PipelineSchedule& schedule, int rank) {
  DoneTable forward(schedule.num_chunks, schedule.num_micro_batches);
  DoneTable backward(schedule.num_chunks, schedule.num_micro_batches);
  const Actions& actions = ActionsOf(schedule, rank);
  for (const PipelineAction& action : actions) {
    if (action.micro_batch < 0 || action.micro_batch >= schedule.num_micro_batches ||
        action.chunk < 0 || action.chunk >= schedule.num_chunks) {
      return Wrong(rank, absl::StrCat(Name(action), ": there is no such thing"));
    }
    const bool is_forward = action.phase == PipelinePhase::kForward;
    DoneTable& done = is_forward ? forward : backward;
    if (done.Get(action.chunk, action.micro_batch)) {
      return Wrong(rank, absl::StrCat(Name(action), " comes twice"));
    }
    if (!is_forward && !forward.Get(action.chunk, action.micro_batch)) {
      return Wrong(rank, absl::StrCat(Name(action), " comes before its forward"));
    }
    done.Set(action.chunk, action.micro_batch);
  }
  // None comes twice, so the number tells whether all are there.
  const size_t expected = static_cast<size_t>(2 * schedule.num_chunks * schedule.num_micro_batches);
  if (actions.size() != expected) {
    return Wrong(rank, absl::StrCat(actions.size(), " actions instead of ", expected));
  }
  return absl::OkStatus();
}

Actions ActionsOfPhase(const Actions& actions, PipelinePhase phase) {
  Actions found;
  std::copy_if(actions.begin(), actions.end(), std::back_inserter(found),
               [phase](const PipelineAction& action) { return action.phase == phase; });
  return found;
}

}  // namespace

PipelineSchedule OneForwardOneBackward(int ranks, int64_t micro_batches) {
  CheckSizes(ranks, 1, micro_batches);
  PipelineSchedule schedule = {
      .num_ranks = ranks, .num_micro_batches = micro_batches, .actions = {}};
  const Actions forward = PhaseOrder(PipelinePhase::kForward, ranks, 1, micro_batches);
  const Actions backward = PhaseOrder(PipelinePhase::kBackward, ranks, 1, micro_batches);
  for (int rank = 0; rank < ranks; ++rank) {
    schedule.actions.push_back(Interleave(forward, backward, ranks - rank - 1));
  }
  return schedule;
}

PipelineSchedule InterleavedOneForwardOneBackward(int ranks, int chunks, int64_t micro_batches) {
  if (chunks == 1) return OneForwardOneBackward(ranks, micro_batches);
  CheckSizes(ranks, chunks, micro_batches);
  PipelineSchedule schedule = {
      .num_ranks = ranks, .num_chunks = chunks, .num_micro_batches = micro_batches, .actions = {}};
  // An execution of the full groups stays one when the micro-batches that do not exist take no
  // time, so without them nobody waits forever, nothing takes longer, and no more is held.
  const int64_t full = (micro_batches + ranks - 1) / ranks * ranks;
  const Actions forward = PhaseOrder(PipelinePhase::kForward, ranks, chunks, full);
  const Actions backward = PhaseOrder(PipelinePhase::kBackward, ranks, chunks, full);
  for (int rank = 0; rank < ranks; ++rank) {
    const int64_t warmup = 2 * (ranks - rank - 1) + int64_t{chunks - 1} * ranks;
    Actions actions = Interleave(forward, backward, warmup);
    std::erase_if(actions, [micro_batches](const PipelineAction& action) {
      return action.micro_batch >= micro_batches;
    });
    schedule.actions.push_back(std::move(actions));
  }
  return schedule;
}

std::vector<ActionIndex> DependencyOrder(const PipelineSchedule& schedule) {
  DoneTable forward(schedule.num_stages(), schedule.num_micro_batches);
  DoneTable backward(schedule.num_stages(), schedule.num_micro_batches);
  const auto is_ready = [&](int stage, const PipelineAction& action) {
    const int64_t micro = action.micro_batch;
    if (action.phase == PipelinePhase::kForward) return stage == 0 || forward.Get(stage - 1, micro);
    return forward.Get(stage, micro) &&
           (stage == schedule.num_stages() - 1 || backward.Get(stage + 1, micro));
  };
  std::vector<ActionIndex> order;
  std::vector<size_t> next(schedule.actions.size(), 0);
  // Each rank goes as far as it can, in turn, until none can go on.
  for (size_t before = SIZE_MAX; before != order.size();) {
    before = order.size();
    for (int rank = 0; rank < schedule.num_ranks; ++rank) {
      const Actions& actions = ActionsOf(schedule, rank);
      for (size_t& k = next[static_cast<size_t>(rank)]; k < actions.size(); ++k) {
        const int stage = schedule.StageOf(rank, actions[k].chunk);
        if (!is_ready(stage, actions[k])) break;
        const bool is_forward = actions[k].phase == PipelinePhase::kForward;
        (is_forward ? forward : backward).Set(stage, actions[k].micro_batch);
        order.push_back({rank, static_cast<int64_t>(k)});
      }
    }
  }
  return order;
}

absl::Status CheckSchedule(const PipelineSchedule& schedule) {
  EK_CHECK(schedule.actions.size() == static_cast<size_t>(schedule.num_ranks))
      << "actions of " << schedule.actions.size() << " ranks, not " << schedule.num_ranks;
  size_t num_actions = 0;
  for (int rank = 0; rank < schedule.num_ranks; ++rank) {
    if (absl::Status status = CheckRank(schedule, rank); !status.ok()) return status;
    num_actions += schedule.actions[static_cast<size_t>(rank)].size();
    for (const PipelinePhase phase : {PipelinePhase::kForward, PipelinePhase::kBackward}) {
      const Actions own = ActionsOfPhase(schedule.actions[static_cast<size_t>(rank)], phase);
      const Actions first = ActionsOfPhase(schedule.actions[0], phase);
      const auto [mine, other] = std::mismatch(own.begin(), own.end(), first.begin());
      if (mine != own.end()) {
        return Wrong(rank, absl::StrCat(Name(*mine), " comes where rank 0 has ", Name(*other)));
      }
    }
  }
  const std::vector<ActionIndex> order = DependencyOrder(schedule);
  if (order.size() == num_actions) return absl::OkStatus();
  std::vector<size_t> done(schedule.actions.size(), 0);
  for (const ActionIndex& action : order) ++done[static_cast<size_t>(action.rank)];
  size_t rank = 0;
  while (done[rank] == schedule.actions[rank].size()) ++rank;
  return Wrong(static_cast<int>(rank),
               absl::StrCat(Name(schedule.actions[rank][done[rank]]), " waits forever"));
}

int64_t PeakInFlight(const PipelineSchedule& schedule, int rank) {
  int64_t held = 0, peak = 0;
  for (const PipelineAction& action : ActionsOf(schedule, rank)) {
    held += action.phase == PipelinePhase::kForward ? 1 : -1;
    peak = std::max(peak, held);
  }
  return peak;
}

std::vector<int> ActivationSlots(const PipelineSchedule& schedule, int rank) {
  std::vector<int> slots;
  std::vector<const PipelineAction*> held;  // by slot, the forward that lies there
  for (const PipelineAction& action : ActionsOf(schedule, rank)) {
    const bool is_forward = action.phase == PipelinePhase::kForward;
    const auto slot = std::find_if(held.begin(), held.end(), [&](const PipelineAction* other) {
      if (is_forward) return other == nullptr;
      return other != nullptr && other->micro_batch == action.micro_batch &&
             other->chunk == action.chunk;
    });
    slots.push_back(static_cast<int>(slot - held.begin()));
    if (!is_forward) {
      EK_CHECK(slot != held.end()) << Name(action) << " comes before its forward";
      *slot = nullptr;
    } else if (slot == held.end()) {
      held.push_back(&action);
    } else {
      *slot = &action;
    }
  }
  return slots;
}

}  // namespace evenkeel
