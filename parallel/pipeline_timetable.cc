#include "parallel/pipeline_timetable.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "absl/strings/str_format.h"
#include "runtime/base/check.h"
#include "runtime/metrics/human_format.h"

namespace evenkeel {
namespace {

constexpr int kIdleWidth = 7;  // columns of " 12.3%"

// When the passes of one phase end, by stage and micro-batch.
class EndTimes {
 public:
  explicit EndTimes(const PipelineSchedule& schedule)
      : micro_batches_(schedule.num_micro_batches),
        ends_(static_cast<size_t>(schedule.num_stages() * schedule.num_micro_batches), 0) {}

  double& At(int stage, int64_t micro) {
    return ends_[static_cast<size_t>(stage * micro_batches_ + micro)];
  }

 private:
  int64_t micro_batches_;
  std::vector<double> ends_;
};

double IdleShare(double busy, double available) {
  return available > 0 ? 1 - busy / available : 0;
}

}  // namespace

Timetable SimulateSchedule(const PipelineSchedule& schedule, const StageCosts& costs) {
  const size_t stages = static_cast<size_t>(schedule.num_stages());
  EK_CHECK(costs.forward.size() == stages && costs.backward.size() == stages)
      << costs.forward.size() << " and " << costs.backward.size() << " costs of " << stages
      << " stages";
  Timetable timetable;
  timetable.num_chunks = schedule.num_chunks;
  timetable.actions.resize(schedule.actions.size());
  timetable.busy.assign(schedule.actions.size(), 0);
  EndTimes forward(schedule), backward(schedule);
  const double message = schedule.num_ranks > 1 ? costs.message : 0;
  size_t num_actions = 0;
  for (const auto& actions : schedule.actions) num_actions += actions.size();
  const std::vector<ActionIndex> order = DependencyOrder(schedule);
  EK_CHECK(order.size() == num_actions) << "the schedule waits forever";
  for (const ActionIndex& at : order) {
    const size_t rank = static_cast<size_t>(at.rank);
    const PipelineAction& action = schedule.actions[rank][static_cast<size_t>(at.index)];
    const bool is_forward = action.phase == PipelinePhase::kForward;
    const int stage = schedule.StageOf(at.rank, action.chunk);
    const int64_t micro = action.micro_batch;
    std::vector<TimedAction>& done = timetable.actions[rank];
    double start = done.empty() ? 0 : done.back().end;
    if (is_forward && stage > 0) {
      start = std::max(start, forward.At(stage - 1, micro) + message);
    } else if (!is_forward && stage + 1 < schedule.num_stages()) {
      start = std::max(start, backward.At(stage + 1, micro) + message);
    }
    const double cost = (is_forward ? costs.forward : costs.backward)[static_cast<size_t>(stage)];
    EK_CHECK(cost >= 0) << "stage " << stage << " takes " << cost << " s";
    (is_forward ? forward : backward).At(stage, micro) = start + cost;
    done.push_back({action, start, start + cost});
    timetable.busy[rank] += cost;
    timetable.makespan = std::max(timetable.makespan, start + cost);
  }
  double all_busy = 0;
  for (const double busy : timetable.busy) {
    timetable.idle_share.push_back(IdleShare(busy, timetable.makespan));
    all_busy += busy;
  }
  timetable.total_idle_share =
      IdleShare(all_busy, timetable.makespan * static_cast<double>(timetable.busy.size()));
  return timetable;
}

std::string RenderTimetable(const Timetable& timetable, int width) {
  EK_CHECK(width >= 60) << width << " columns";
  const int digits =
      static_cast<int>(std::to_string(std::max<size_t>(timetable.actions.size(), 1) - 1).size());
  const int columns = width - static_cast<int>(sizeof("rank ") - 1) - digits - 1 - kIdleWidth;
  std::string text;
  for (size_t rank = 0; rank < timetable.actions.size(); ++rank) {
    std::string line(static_cast<size_t>(columns), '.');
    size_t next = 0;  // the first action that ends after the column's middle
    const std::vector<TimedAction>& actions = timetable.actions[rank];
    for (size_t column = 0; column < line.size(); ++column) {
      const double middle = (static_cast<double>(column) + 0.5) / columns * timetable.makespan;
      while (next < actions.size() && actions[next].end <= middle) ++next;
      if (next == actions.size()) break;
      if (actions[next].start > middle) continue;
      const PipelineAction& action = actions[next].action;
      const char first = action.phase == PipelinePhase::kForward ? '0' : 'a';
      line[column] = static_cast<char>(first + action.micro_batch % 10);
    }
    absl::StrAppendFormat(&text, "rank %*d %s %5.1f%%\n", digits, rank, line,
                          100 * timetable.idle_share[rank]);
  }
  absl::StrAppendFormat(&text, "%s, %.1f%% idle; 0-9 forward, a-j backward, . idle\n",
                        FormatDuration(timetable.makespan), 100 * timetable.total_idle_share);
  return text;
}

}  // namespace evenkeel
