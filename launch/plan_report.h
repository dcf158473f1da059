// What can be said about a run before it starts: FLOPs, mesh, and, for each kind of rank, what it
// holds, needs and sends; for a pipeline also the timetable of its schedule.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launch/rank_kinds.h"
#include "launch/run_config.h"
#include "nlohmann/json_fwd.hpp"
#include "parallel/pipeline_timetable.h"
#include "scheduler/flops.h"

namespace evenkeel {

struct KindReport {
  RankKind kind;
  int64_t owned_parameters = 0;
  MemoryPlan memory;
  CommVolume volume;
};

struct PlanReport {
  std::string config_file;
  RunConfig config;
  ParallelPlan plan;
  ModelShape model;               // the whole one
  StepFlops flops;                // of a sample, one document
  std::vector<KindReport> kinds;  // the one that needs most memory first
  // Of a replica, or of all together.
  int64_t micro_batches = 0;
  int64_t empty_micro_batches = 0;
  int64_t short_micro_batches = 0;
  // Without messages, of layers that cost what their FLOPs do; with several stages only.
  std::optional<Timetable> timetable;
  double assumed_flops = 0;  // FLOP/s of a rank

  int64_t step_tokens() const {
    return config.data.sequence_length * config.train.global_batch_size;
  }
  double flops_per_token() const {
    return flops.total() / static_cast<double>(config.data.sequence_length);
  }
};

// As configs and JSON name them.
const char* DeviceText(Device device);
const char* DTypeText(DType dtype);

// `ranks` 0: as many as the degrees of the config multiply to. Fails as `train` does if the layout
// does not suit the model.
absl::StatusOr<PlanReport> MakePlanReport(const std::string& config_file, const RunConfig& config,
                                          int64_t ranks);

std::string PlanText(const PlanReport& report);
nlohmann::json PlanJson(const PlanReport& report);

}  // namespace evenkeel
