// What a run writes and shows while it trains: the progress line, metrics.jsonl, TensorBoard events
// and, at the end, loss.svg. Only rank 0 has one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "launch/evaluation.h"
#include "launch/run_config.h"
#include "runtime/metrics/metrics_log.h"
#include "runtime/metrics/progress_line.h"
#include "runtime/metrics/tensorboard_writer.h"

namespace evenkeel {

// Of disaggregated attention in a step.
struct AttentionMetrics {
  int servers = 0;  // 0: attention is not disaggregated
  // Heaviest over mean load: by the cost model, sums over the step's layers and nano-batches; and
  // of the servers' time in the kernel over the step, 0 where that is not known.
  double planned_imbalance = 1;
  double measured_imbalance = 0;
  double planning_seconds = 0;       // on a thread, beside the step before
  double planning_wait_seconds = 0;  // that this step waited for it
  double most_sent_bytes = 0;        // by any rank, over all axes
};

struct StepMetrics {
  int64_t step = 0;  // updates done
  double loss = 0;
  double grad_norm = 0;
  double lr = 0;
  int64_t tokens = 0;        // seen since the beginning of the run
  int64_t valid_tokens = 0;  // with a target, in this step
  double step_seconds = 0;
  double tokens_per_s = 0;
  double model_flops = 0;  // of the step, over all ranks
  double mfu = 0;          // share of the ranks' peak
  double exposed_comm_seconds = 0;
  double exposed_comm_share = 0;     // of the step, the mean over the ranks
  double least_exposed_share = 0;    // of the rank that waited least
  double most_exposed_share = 0;     // and most
  double pipeline_wait_seconds = 0;  // of that, for other stages
  double sent_bytes = 0;             // by this rank, over the axes of the mesh
  double data_seconds = 0;
  int64_t memory_bytes = 0;  // peak of rank 0
  AttentionMetrics attention;
};

class RunReport {
 public:
  // `restored_step` > 0 for a resumed run: what earlier processes reported beyond it is superseded.
  static absl::StatusOr<RunReport> Open(const RunConfig& config, int64_t restored_step);

  void Step(const StepMetrics& metrics);
  void Eval(int64_t step, const Evaluation& evaluation);
  void Checkpoint(int64_t step, double seconds);
  void Fault(int64_t step, const std::string& what);
  void Message(const std::string& line) { progress_->Message(line); }
  void Finish() { progress_->Finish(); }

  // Of what no resumption superseded; -1 if there is none.
  absl::StatusOr<int64_t> LastEvaluatedStep() const;

  // Draws loss.svg from the whole history in metrics.jsonl. Returns its path.
  absl::StatusOr<std::string> PlotLoss() const;

 private:
  RunReport(const RunConfig& config, MetricsLog log, TensorBoardWriter tensorboard);

  RunConfig config_;
  MetricsLog log_;
  TensorBoardWriter tensorboard_;
  std::unique_ptr<ProgressLine> progress_;
};

}  // namespace evenkeel
