#include "launch/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/run_folder.h"
#include "launch/stop_request.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/log.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/agreement.h"
#include "runtime/ops/gpu.h"
#include "scheduler/flops.h"

namespace evenkeel {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<int64_t> PieceLengths(const PackedBatch& batch) {
  std::vector<int64_t> lengths;
  for (size_t i = 1; i < batch.cu_seqlens.size(); ++i) {
    lengths.push_back(batch.cu_seqlens[i] - batch.cu_seqlens[i - 1]);
  }
  return lengths;
}

}  // namespace

absl::Status Trainer::Run() {
  const absl::Status status = RunSteps();
  if (mesh_ranks_.servers == nullptr || absl::IsDeadlineExceeded(status)) return status;
  EK_RETURN_IF_ERROR(mesh_ranks_.servers->Order(ServerOrder()));
  return status;
}

absl::Status Trainer::RunSteps() {
  EK_RETURN_IF_ERROR(Start());
  const auto due = [&](int64_t every) { return every > 0 && progress_.step % every == 0; };
  // What the untrained model knows, to compare with; or what was due when the run was stopped,
  // which does not wait for it.
  if (due(config_.train.eval_every)) EK_RETURN_IF_ERROR(EvaluateHeldOut());
  bool stop = false;
  while (progress_.step < config_.train.steps && !stop) {
    comm_.SetStep(progress_.step + 1);
    if (gpu_comm_ != nullptr) gpu_comm_->world().SetStep(progress_.step + 1);
    EK_RETURN_IF_ERROR(tracer_->BeginStep(progress_.step + 1, context_));
    const double begin = Now();
    const absl::StatusOr<StepResult> result = Step();
    EK_RETURN_IF_ERROR(SaveWithoutServers());
    EK_RETURN_IF_ERROR(result.status());
    tracer_->EndStep(progress_.step, context_);
    EK_RETURN_IF_ERROR(ReportStep(*result, Now() - begin));
    stop = result->stop_requested;
    if (due(config_.train.eval_every) && !stop) EK_RETURN_IF_ERROR(EvaluateHeldOut());
    if (due(config_.checkpoint.every) && !stop) EK_RETURN_IF_ERROR(Save());
  }
  const bool done = progress_.step >= config_.train.steps;
  if (done) EK_RETURN_IF_ERROR(EvaluateHeldOut());
  const bool saves = config_.checkpoint.every >= 0;
  if (saves && saved_step_ != progress_.step) EK_RETURN_IF_ERROR(Save());
  if (report_.has_value()) {
    report_->Finish();
    if (auto plot = report_->PlotLoss(); !plot.ok()) {
      LogWarning(absl::StrCat("no loss.svg: ", std::string(plot.status().message())));
    }
  }
  if (done) return absl::OkStatus();
  return WithExitCode(absl::CancelledError(absl::StrCat(
                          "stopped at step ", progress_.step, " of ", config_.train.steps,
                          saves ? ", saved; the same command goes on from there"
                                : "; nothing was saved, as checkpoint.every is -1")),
                      ExitCode::kPreempted);
}

// The micro-batches of this rank's replica, and the model's FLOPs of them.
absl::StatusOr<std::vector<PackedBatch>> Trainer::ReadBatches(double* model_flops) {
  std::vector<PackedBatch> batches;
  for (const MicroBatch& micro :
       MicroBatchesOfRank(progress_.step, config_.train.global_batch_size,
                          config_.train.micro_batch_size, mesh_->coord().dp, mesh_->shape().dp)) {
    EK_ASSIGN_OR_RETURN(PackedBatch batch, data_.Read(micro));
    *model_flops += TrainingFlops(shape_, PieceLengths(batch)).total();
    batches.push_back(std::move(batch));
  }
  return batches;
}

bool Trainer::CountsLosses() const {
  return mesh_->coord().tp == 0 && mesh_->coord().pp == mesh_->shape().pp - 1;
}

absl::StatusOr<Trainer::StepResult> Trainer::Step() {
  StepResult result;
  const double begin = Now();
  mesh_->log().ClearVolumes();  // of an evaluation
  std::optional<TraceSpan> span;
  const auto begin_phase = [&](const char* name) {
    span.emplace(tracer_->host_writer(), tracer_->host_lane(), name);
  };
  begin_phase("read data");
  double counts[2] = {0, 0};  // targets, FLOPs
  const absl::StatusOr<std::vector<PackedBatch>> batches = ReadBatches(&counts[1]);
  if (batches.ok()) {
    for (const PackedBatch& batch : *batches) counts[0] += static_cast<double>(batch.num_valid());
  }
  // All ranks of a replica have read the same.
  const MeshCoord& at = mesh_->coord();
  if (at.tp > 0 || at.cp > 0 || at.pp > 0) counts[0] = counts[1] = 0;
  result.data_seconds = Now() - begin;
  begin_phase("count targets");
  EK_RETURN_IF_ERROR(AgreeOnStatus(comm_, batches.status(), "training data"));
  EK_RETURN_IF_ERROR(
      comm_.AllReduce(TensorView(counts, DType::kF64, {2}), ReduceOp::kSum, "target counts"));
  result.valid_tokens = static_cast<int64_t>(counts[0]);
  result.model_flops = counts[1];

  // The loss is the mean over all tokens of the global batch that have a target, counted once: a
  // rank's share of it follows from what it holds, which may be nothing.
  const double scale = counts[0] > 0 ? 1 / counts[0] : 0;
  begin_phase(context_.cuda == nullptr ? "forward and backward" : "enqueue");
  const ArenaScope scope(context_.arena);
  // The sum of the losses and the square of the gradient's norm, where the ops leave them: on a GPU
  // nobody waits for them before the end of the step.
  const TensorView sums = context_.arena.AllocateZero(DType::kF64, {2}, MemoryPurpose::kWorkspace);
  if (Fp8Scales* scales = model_.fp8_scales()) scales->BeginStep(context_);
  EK_RETURN_IF_ERROR(ComputeGradients(*batches, scale, sums));
  // Every rank has the same norm, so all update, or, if it is not finite, none.
  if (result.valid_tokens > 0) {
    AdamWStepParams step;
    step.lr = LearningRate(config_.train.schedule, progress_.step);
    step.step = progress_.step + 1;
    step.clip_norm = config_.train.clip_norm;
    optimizer_.Update(context_, step, model_, sums.Rows(1, 2));
  } else {
    model_.DropGradients(context_);
  }

  begin_phase("wait for results");
  double values[2] = {0, 0};
  EK_RETURN_IF_ERROR(ReadDoubles(context_, sums, absl::MakeSpan(values)));
  EK_RETURN_IF_ERROR(mesh_->log().status());
  EK_RETURN_IF_ERROR(ShareLoads());
  const double waited = mesh_->log().TakeExposedSeconds();
  result.sent_bytes = mesh_->log().TakeSentBytes();
  result.exposed_comm_seconds = gpu_comm_ == nullptr ? waited : gpu_comm_->TakeExposedSeconds();
  const auto ranks = static_cast<size_t>(comm_.size()), me = static_cast<size_t>(comm_.rank());
  std::vector<double> shared(2 + 2 * ranks, 0.0);
  shared[0] = CountsLosses() ? values[0] : 0;
  shared[1] = StopRequested() ? 1 : 0;
  shared[2 + me] = result.exposed_comm_seconds;
  shared[2 + ranks + me] = result.sent_bytes;
  EK_RETURN_IF_ERROR(
      comm_.AllReduce(TensorView(shared.data(), DType::kF64, {static_cast<int64_t>(shared.size())}),
                      ReduceOp::kSum, "loss, requests to stop, waiting, bytes"));
  const auto waits = absl::MakeSpan(shared).subspan(2, ranks);
  const auto sent = absl::MakeSpan(shared).subspan(2 + ranks);
  attention_.most_sent_bytes =
      std::max(attention_.most_sent_bytes, *std::max_element(sent.begin(), sent.end()));
  result.mean_exposed_seconds = std::accumulate(waits.begin(), waits.end(), 0.0) / comm_.size();
  result.least_exposed_seconds = *std::min_element(waits.begin(), waits.end());
  result.most_exposed_seconds = *std::max_element(waits.begin(), waits.end());
  result.loss = shared[0] * scale;
  result.stop_requested = shared[1] > 0;
  result.grad_norm = std::sqrt(values[1]);
  const bool finite = std::isfinite(result.loss) && std::isfinite(result.grad_norm);
  if (!finite && config_.train.on_nonfinite == NonFinitePolicy::kStop) {
    if (report_.has_value()) report_->Finish();
    return WithExitCode(
        absl::OutOfRangeError(absl::StrFormat(
            "step %d: loss %g, gradient norm %g: not finite, and no weight was updated. The last "
            "checkpoint is in %s/checkpoints; a lower train.lr or more train.warmup_steps may help",
            progress_.step + 1, result.loss, result.grad_norm, config_.folder)),
        ExitCode::kDiverged);
  }
  result.applied = finite && result.valid_tokens > 0;
  if (result.applied) EK_RETURN_IF_ERROR(LearnFp8Scales());
  progress_.step += 1;
  progress_.samples += config_.train.global_batch_size;
  progress_.tokens += config_.train.global_batch_size * config_.data.sequence_length;
  return result;
}

absl::Status Trainer::LearnFp8Scales() {
  Fp8Scales* scales = model_.fp8_scales();
  if (scales == nullptr) return absl::OkStatus();
  EK_ASSIGN_OR_RETURN(std::vector<double> amax, scales->ReadAmax(context_));
  // NaN has no place in a maximum. It says nothing about a scale.
  for (double& value : amax) value = std::isfinite(value) ? value : 0;
  EK_RETURN_IF_ERROR(comm_.AllReduce(TensorView(amax.data(), DType::kF64, {scales->size()}),
                                     ReduceOp::kMax, "largest values of FP8 tensors"));
  return scales->Learn(context_, amax);
}

absl::Status Trainer::ReportStep(const StepResult& result, double seconds) {
  last_loss_ = result.loss;
  if (!report_.has_value()) return absl::OkStatus();
  if (!result.applied) {
    report_->Fault(progress_.step, result.valid_tokens == 0
                                       ? "skipped: no token of the batch has a target"
                                       : "skipped: loss or gradient not finite");
  }
  const bool due = progress_.step % config_.train.log_every == 0 ||
                   progress_.step == config_.train.steps || result.stop_requested;
  if (!due) return absl::OkStatus();
  StepMetrics metrics;
  metrics.step = progress_.step;
  metrics.loss = result.loss;
  metrics.grad_norm = result.grad_norm;
  metrics.lr = LearningRate(config_.train.schedule, progress_.step - 1);
  metrics.tokens = progress_.tokens;
  metrics.valid_tokens = result.valid_tokens;
  metrics.step_seconds = seconds;
  metrics.tokens_per_s =
      static_cast<double>(config_.train.global_batch_size * config_.data.sequence_length) / seconds;
  metrics.model_flops = result.model_flops;
  metrics.mfu = result.model_flops / seconds / (peak_flops_ * plan_.num_ranks());
  metrics.exposed_comm_seconds = result.exposed_comm_seconds;
  metrics.exposed_comm_share = result.mean_exposed_seconds / seconds;
  metrics.least_exposed_share = result.least_exposed_seconds / seconds;
  metrics.most_exposed_share = result.most_exposed_seconds / seconds;
  metrics.pipeline_wait_seconds = pipeline_.waiting_seconds();
  metrics.sent_bytes = result.sent_bytes;
  metrics.data_seconds = result.data_seconds;
  metrics.memory_bytes = tracker_.peak_total();
  metrics.attention = attention_;
  report_->Step(metrics);
  return absl::OkStatus();
}

absl::Status Trainer::SaveWithoutServers() {
  if (!has_too_few_servers_ || config_.checkpoint.every < 0 || saved_step_ == progress_.step) {
    return absl::OkStatus();
  }
  return Save();
}

absl::Status Trainer::Save() {
  const double begin = Now();
  const absl::Status status =
      SaveTraining(context_, comm_, plan_.placement(), store_.has_value() ? &*store_ : nullptr,
                   progress_, static_cast<int>(config_.checkpoint.keep_last), model_, optimizer_);
  // Alike on all ranks, as is whether to go on.
  if (!status.ok()) {
    if (absl::IsDeadlineExceeded(status)) return status;  // peers are missing
    double stops = StopRequested() || has_too_few_servers_ ? 1 : 0;
    EK_RETURN_IF_ERROR(
        comm_.AllReduce(TensorView(&stops, DType::kF64, {1}), ReduceOp::kMax, "requests to stop"));
    if (config_.checkpoint.on_error == SaveErrorPolicy::kStop || stops > 0 ||
        progress_.step >= config_.train.steps) {
      return status;
    }
    if (report_.has_value()) {
      report_->Fault(progress_.step, absl::StrCat("checkpoint not saved, training goes on: ",
                                                  std::string(status.message())));
    }
    saved_step_ = progress_.step;
    return absl::OkStatus();
  }
  if (report_.has_value()) report_->Checkpoint(progress_.step, Now() - begin);
  saved_step_ = progress_.step;
  return absl::OkStatus();
}

bool Trainer::StopRequested() const {
  if (!CaughtSignal().empty()) return true;
  if (comm_.rank() != 0) return false;
  return HasStopFile(config_.folder) ||
         (config_.train.max_minutes > 0 && Elapsed() > 60 * config_.train.max_minutes);
}

double Trainer::Elapsed() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

}  // namespace evenkeel
