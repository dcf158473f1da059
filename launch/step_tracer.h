// Writes the timeline of a window of steps: RUN/trace/rank-N.json, a Chrome trace that opens in
// ui.perfetto.dev. The config's section trace says which steps.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "launch/run_config.h"
#include "runtime/comm/communicator.h"
#include "runtime/comm/gpu_comm.h"
#include "runtime/metrics/trace_writer.h"
#include "runtime/ops/step_trace.h"

namespace evenkeel {

class StepTracer {
 public:
  // Every rank of `comm` calls it. Traces steps [config.trace.first_step, first_step + steps).
  // `gpu_comm` may be null.
  static absl::StatusOr<StepTracer> Create(const RunConfig& config, Communicator& comm,
                                           GpuComm* gpu_comm);

  // Before a step: opens the file at the window's beginning and lets ops of `context` record; after
  // the window, closes it and stops them.
  absl::Status BeginStep(int64_t step, OpContext& context);
  // After a step whose work the host has waited for.
  void EndStep(int64_t step, OpContext& context);

  // Where the host's own phases are recorded; null outside the window.
  TraceWriter* host_writer() { return writer_.get(); }
  int host_lane() const { return host_lane_; }

 private:
  StepTracer() = default;

  TraceConfig window_;
  GpuComm* gpu_comm_ = nullptr;
  std::string path_;
  int rank_ = 0;
  double origin_us_ = 0;
  std::unique_ptr<TraceWriter> writer_;
  std::unique_ptr<StepTrace> trace_;
  int host_lane_ = 0;
  int compute_lane_ = 0;
  int communication_lane_ = 0;
  double step_begin_us_ = 0;
};

}  // namespace evenkeel
