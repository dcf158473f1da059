#include "scheduler/sim_timeline.h"

#include <algorithm>

namespace evenkeel {

SimTimeline::SimTimeline(int num_ranks, bool one_stream)
    : one_stream_(one_stream),
      compute_free_(static_cast<size_t>(num_ranks)),
      comm_free_(static_cast<size_t>(num_ranks)),
      busy_(static_cast<size_t>(num_ranks)),
      round_start_(static_cast<size_t>(num_ranks)),
      round_end_(static_cast<size_t>(num_ranks)) {}

double SimTimeline::Compute(int rank, SimWork work, double ready, double seconds) {
  const auto at = static_cast<size_t>(rank);
  const double start = std::max(ready, compute_free_[at]);
  if (seconds <= 0) return start;
  const double end = start + seconds;
  compute_free_[at] = end;
  SimBusy& busy = busy_[at];
  switch (work) {
    case SimWork::kLinear:
      busy.linear += seconds;
      break;
    case SimWork::kAttention:
      busy.attention += seconds;
      break;
    case SimWork::kCopy:
      busy.copy += seconds;
      break;
    case SimWork::kMessage:
      busy.message += seconds;
      break;
  }
  if (records_) spans_.push_back({rank, false, work, ready, start, end});
  return end;
}

void SimTimeline::Exchange(absl::Span<const SimMessage> messages,
                           absl::Span<const std::vector<int32_t>> rounds,
                           absl::Span<const double> ready, std::vector<double>* arrived) {
  std::vector<double>& free = comm_free();
  arrived->assign(busy_.size(), 0);
  for (const std::vector<int32_t>& round : rounds) {
    // All starts of a round before its ends: a rank that sends and receives does so at once.
    for (int32_t index : round) {
      for (int32_t rank :
           {messages[static_cast<size_t>(index)].from, messages[static_cast<size_t>(index)].to}) {
        const auto at = static_cast<size_t>(rank);
        round_start_[at] = std::max(free[at], ready[at]);
        round_end_[at] = round_start_[at];
      }
    }
    for (int32_t index : round) {
      const SimMessage& message = messages[static_cast<size_t>(index)];
      const auto from = static_cast<size_t>(message.from), to = static_cast<size_t>(message.to);
      const double start = std::max(round_start_[from], round_start_[to]);
      const double end = start + message.seconds;
      round_end_[from] = std::max(round_end_[from], end);
      round_end_[to] = std::max(round_end_[to], end);
      if (records_) {
        spans_.push_back({message.from, true, SimWork::kMessage, std::max(ready[from], ready[to]),
                          start, end, message.to, true});
        spans_.push_back({message.to, true, SimWork::kMessage, std::max(ready[from], ready[to]),
                          start, end, message.from, false});
      }
    }
    for (int32_t index : round) {
      const SimMessage& message = messages[static_cast<size_t>(index)];
      for (int32_t rank : {message.from, message.to}) {
        const auto at = static_cast<size_t>(rank);
        // Once a rank and round: a rank that sends and receives comes by twice.
        if (round_end_[at] > round_start_[at]) {
          busy_[at].message += round_end_[at] - round_start_[at];
          round_start_[at] = round_end_[at];
        }
        free[at] = std::max(free[at], round_end_[at]);
      }
      auto& last = (*arrived)[static_cast<size_t>(message.to)];
      last = std::max(last, round_end_[static_cast<size_t>(message.to)]);
    }
  }
}

double SimTimeline::makespan() const {
  double last = 0;
  for (double end : compute_free_) last = std::max(last, end);
  for (double end : comm_free_) last = std::max(last, end);
  return last;
}

}  // namespace evenkeel
