// What one nano-batch of a pipeline tick makes the ranks of a pool compute and send in a softmax
// layer, priced: its plan on the cluster of the simulator. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/pipeline_schedule.h"
#include "scheduler/cluster.h"
#include "scheduler/sim_timeline.h"
#include "scheduler/step_costs.h"
#include "scheduler/tick_plan.h"

namespace evenkeel {

struct NanoWork {
  std::vector<int64_t> tokens;                      // by rank, of those that take part in the layer
  std::vector<double> attend;                       // seconds of one layer, by rank
  std::vector<std::vector<int32_t>> rounds;         // of messages, on the way to servers
  std::vector<std::vector<int32_t>> return_rounds;  // the same: every message turned round
  std::vector<SimMessage> dispatch, giving_back;
  // Bytes that a rank packs before a dispatch, or unpacks and adds up after a return, what it keeps
  // for itself included. Servers receive and send in place.
  std::vector<double> packed, unpacked;
};

struct NanoPricing {
  int tp = 1;
  bool has_residents = true;  // whole documents that stay where they are are not copied
  bool signals = false;       // messages of one byte
};

// All but the tokens.
NanoWork WorkOf(const PlannedNano& nano, PipelinePhase phase, const NanoPricing& pricing,
                const ClusterShape& cluster, const StepCosts& costs);

// A message of so many bytes between two ranks of the pool.
SimMessage MessageOf(const NanoPricing& pricing, const ClusterShape& cluster, int from, int to,
                     double bytes);

}  // namespace evenkeel
