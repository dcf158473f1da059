// The learning rate as a function of the step.
#pragma once

#include <cstdint>

namespace evenkeel {

enum class LrDecay {
  kCosine,             // from lr down to min_lr over all steps after warm-up
  kConstantThenDecay,  // lr, then linearly to min_lr over the last decay_steps
};

struct LrSchedule {
  LrDecay decay = LrDecay::kCosine;
  double lr = 1e-3;
  double min_lr = 1e-4;
  int64_t warmup_steps = 0;  // linear from lr / warmup_steps
  int64_t decay_steps = 0;   // kConstantThenDecay only
  int64_t total_steps = 1;
};

// `step` counts from 0 (the first update). At and after total_steps the rate is min_lr.
double LearningRate(const LrSchedule& schedule, int64_t step);

}  // namespace evenkeel
