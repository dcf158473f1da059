// Simulated training steps without disaggregation, on the same cluster and costs. Pure.
//
// A replica runs its micro-batches through its stages in 1F1B order, interleaved where pipeline
// ranks have several (rank `pp` of p the stages pp, p + pp, ... of the costs); the ranks that share
// a replica's tokens hold an equal part of every document each, in zigzag, and gather the keys and
// values of all of them in every layer.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "scheduler/cluster.h"
#include "scheduler/disaggregated_step.h"
#include "scheduler/step_costs.h"

namespace evenkeel {

enum class BaselinePacking {
  kInOrder,   // documents as they come, cut where a micro-batch is full
  kBalanced,  // whole documents, so that micro-batches take the same time (as WLB-LLM packs)
};

struct BaselineSetup {
  int pp = 1;  // divides the number of stages that the costs have
  int dp = 1;
  int cp = 1;
  int tp = 1;
  int64_t micro_batches = 1;  // of a replica
  BaselinePacking packing = BaselinePacking::kBalanced;
  // Tokens of a micro-batch over the mean, kBalanced: memory grows with them.
  double token_slack = 1.2;
  // Gathers of keys and values hide behind core attention. As released they do not.
  bool hides_gathers = false;
  // Keys and values are gathered again in the backward pass instead of being kept.
  bool gathers_again = false;
  // Rows of keys and values are packed before a gather and brought in order after it, gradients the
  // other way, as this program does. Ideally nothing is copied.
  bool copies_rows = false;
};

// Documents of each micro-batch, [replica * micro_batches + i].
std::vector<std::vector<int64_t>> PackMicroBatches(const BaselineSetup& setup,
                                                   const StepCosts& costs,
                                                   absl::Span<const int64_t> documents);

SimulatedStep SimulateBaseline(const BaselineSetup& setup, const ClusterShape& cluster,
                               const StepCosts& costs, absl::Span<const int64_t> documents);

// Runs the packed micro-batches of all replicas.
SimulatedStep SimulatePacked(const BaselineSetup& setup, const ClusterShape& cluster,
                             const StepCosts& costs,
                             absl::Span<const std::vector<int64_t>> micro_batches);

}  // namespace evenkeel
