// The steps of a training run, as its config says, on a described cluster: the layout, the batches
// and, where attention is disaggregated, the plans that `evenkeel train` would have.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launch/cluster_config.h"
#include "launch/run_config.h"
#include "nlohmann/json_fwd.hpp"
#include "scheduler/disaggregated_step.h"

namespace evenkeel {

struct RunSimulation {
  std::string layout;                // "dp 2, disaggregated"
  double update_seconds = 0;         // in each step: reduction of gradients, optimizer
  std::vector<SimulatedStep> steps;  // with that
};

// The first `steps` steps of the run over `ranks` ranks, which may include dedicated servers. What
// is not simulated (ring and ulysses attention, sharded gradients and parameters, speeds that are
// learned) is an error. The config's data set has to be there.
absl::StatusOr<RunSimulation> SimulateRun(const RunConfig& config, const ClusterConfig& cluster,
                                          int64_t ranks, int64_t steps);

std::string RunSimulationText(const RunSimulation& run);
nlohmann::json RunSimulationJson(const RunSimulation& run);

}  // namespace evenkeel
