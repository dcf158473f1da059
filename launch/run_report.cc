#include "launch/run_report.h"

#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/output_file.h"
#include "runtime/base/status_macros.h"
#include "runtime/metrics/human_format.h"
#include "runtime/metrics/line_plot.h"

namespace evenkeel {
namespace {

std::string MetricsPath(const RunConfig& config) {
  return config.folder + "/metrics.jsonl";
}

// How much of the past the smoothed loss keeps: about a fortieth of the run.
double Smoothing(size_t points) {
  return points < 80 ? 0 : 1 - 40.0 / static_cast<double>(points);
}

}  // namespace

RunReport::RunReport(const RunConfig& config, MetricsLog log, TensorBoardWriter tensorboard)
    : config_(config), log_(std::move(log)), tensorboard_(std::move(tensorboard)) {}

absl::StatusOr<RunReport> RunReport::Open(const RunConfig& config, int64_t restored_step) {
  EK_ASSIGN_OR_RETURN(MetricsLog log, MetricsLog::Open(MetricsPath(config)));
  EK_ASSIGN_OR_RETURN(TensorBoardWriter tensorboard, TensorBoardWriter::Open(config.folder));
  RunReport report(config, std::move(log), std::move(tensorboard));
  // Also a run that starts from the beginning in a folder with a history supersedes all of it.
  report.log_.Write(MetricEvent::kResume, restored_step, {});
  if (restored_step > 0) report.tensorboard_.Resume(restored_step);
  ProgressOptions options = ChooseProgress(ReadTerminalFacts());
  options.start_step = restored_step;
  report.progress_ = std::make_unique<ProgressLine>(std::move(options), std::cout);
  return report;
}

void RunReport::Step(const StepMetrics& m) {
  std::vector<MetricValue> values = {{"loss", m.loss},
                                     {"grad_norm", m.grad_norm},
                                     {"lr", m.lr},
                                     {"tokens", m.tokens},
                                     {"valid_tokens", m.valid_tokens},
                                     {"step_ms", m.step_seconds * 1e3},
                                     {"tokens_per_s", m.tokens_per_s},
                                     {"tflops", m.model_flops / m.step_seconds * 1e-12},
                                     {"mfu", m.mfu},
                                     {"exposed_comm_ms", m.exposed_comm_seconds * 1e3},
                                     {"exposed_comm_share", m.exposed_comm_share},
                                     {"least_exposed_share", m.least_exposed_share},
                                     {"most_exposed_share", m.most_exposed_share},
                                     {"pipeline_wait_ms", m.pipeline_wait_seconds * 1e3},
                                     {"sent_bytes", m.sent_bytes},
                                     {"data_ms", m.data_seconds * 1e3},
                                     {"memory", m.memory_bytes}};
  if (const AttentionMetrics& a = m.attention; a.servers > 0) {
    values.push_back({"attention_planned_imbalance", a.planned_imbalance});
    if (a.measured_imbalance > 0) {
      values.push_back({"attention_imbalance", a.measured_imbalance});
    }
    values.push_back({"most_sent_bytes", a.most_sent_bytes});
    values.push_back({"planning_ms", a.planning_seconds * 1e3});
    values.push_back({"planning_wait_ms", a.planning_wait_seconds * 1e3});
  }
  log_.Write(MetricEvent::kTrain, m.step, values);
  tensorboard_.Scalar("loss_metrics/global_avg_loss", m.step, m.loss);
  tensorboard_.Scalar("grad_norm", m.step, m.grad_norm);
  tensorboard_.Scalar("lr", m.step, m.lr);
  tensorboard_.Scalar("throughput(tps)", m.step, m.tokens_per_s);
  tensorboard_.Scalar("mfu(%)", m.step, 100 * m.mfu);
  StepReport report;
  report.step = m.step;
  report.total_steps = config_.train.steps;
  report.loss = m.loss;
  report.tokens_per_s = m.tokens_per_s;
  report.grad_norm = m.grad_norm;
  report.learning_rate = m.lr;
  progress_->Update(report);
}

void RunReport::Eval(int64_t step, const Evaluation& evaluation) {
  log_.Write(MetricEvent::kEval, step,
             {{"loss", evaluation.loss()},
              {"perplexity", evaluation.perplexity()},
              {"tokens", evaluation.tokens}});
  tensorboard_.Scalar("validation_metrics/loss", step, evaluation.loss());
  progress_->Message(absl::StrFormat("step %d  held-out loss %.4f  perplexity %.3f", step,
                                     evaluation.loss(), evaluation.perplexity()));
}

void RunReport::Checkpoint(int64_t step, double seconds) {
  log_.Write(MetricEvent::kCheckpoint, step, {{"seconds", seconds}});
}

void RunReport::Fault(int64_t step, const std::string& what) {
  log_.Write(MetricEvent::kFault, step, {{"what", what}});
  progress_->Message("step " + absl::StrCat(step) + "  " + what);
}

absl::StatusOr<int64_t> RunReport::LastEvaluatedStep() const {
  EK_ASSIGN_OR_RETURN(const MetricsHistory eval,
                      ReadMetrics(MetricsPath(config_), MetricEvent::kEval));
  return eval.rows.empty() ? -1 : eval.rows.back().step;
}

absl::StatusOr<std::string> RunReport::PlotLoss() const {
  EK_ASSIGN_OR_RETURN(const MetricsHistory train,
                      ReadMetrics(MetricsPath(config_), MetricEvent::kTrain));
  EK_ASSIGN_OR_RETURN(const MetricsHistory eval,
                      ReadMetrics(MetricsPath(config_), MetricEvent::kEval));
  LinePlot plot;
  plot.title = "Loss";
  plot.subtitle = absl::StrFormat("%s  -  %d layers of width %d, %s tokens a step", config_.folder,
                                  config_.model.num_layers, config_.model.hidden_size,
                                  FormatCount(static_cast<double>(config_.train.global_batch_size) *
                                              static_cast<double>(config_.data.sequence_length)));
  plot.x_label = "step";
  plot.y_label = "loss (nats a token)";
  MetricSeries series = SeriesOf(train, "loss");
  const double smoothing = Smoothing(series.steps.size());
  plot.series.push_back({"training", std::move(series.steps), std::move(series.values), smoothing});
  if (MetricSeries held_out = SeriesOf(eval, "loss"); !held_out.steps.empty()) {
    plot.series.push_back({"held out", std::move(held_out.steps), std::move(held_out.values), 0});
  }
  const std::string path = config_.folder + "/loss.svg";
  EK_RETURN_IF_ERROR(WriteTextFile(path, RenderLinePlot(plot)));
  return path;
}

}  // namespace evenkeel
