#include "launch/lr_schedule.h"

#include <algorithm>
#include <cmath>

namespace evenkeel {

double LearningRate(const LrSchedule& schedule, int64_t step) {
  if (step < schedule.warmup_steps) {
    return schedule.lr * static_cast<double>(step + 1) / static_cast<double>(schedule.warmup_steps);
  }
  const int64_t begin =
      schedule.decay == LrDecay::kCosine
          ? schedule.warmup_steps
          : std::max(schedule.warmup_steps, schedule.total_steps - schedule.decay_steps);
  const int64_t length = schedule.total_steps - begin;
  if (step < begin) return schedule.lr;
  if (length <= 0 || step >= schedule.total_steps) return schedule.min_lr;
  const double done = static_cast<double>(step - begin) / static_cast<double>(length);
  const double share = schedule.decay == LrDecay::kCosine
                           ? 0.5 * (1 + std::cos(3.14159265358979323846 * done))
                           : 1 - done;
  return schedule.min_lr + (schedule.lr - schedule.min_lr) * share;
}

}  // namespace evenkeel
