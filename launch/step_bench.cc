#include "launch/step_bench.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "models/model_shape.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/philox.h"
#include "runtime/base/status_macros.h"
#include "runtime/ops/gpu.h"
#include "runtime/ops/step_trace.h"
#include "scheduler/flops.h"
#include "scheduler/memory_plan.h"

namespace evenkeel {
namespace {

constexpr double kLearningRate = 1e-4, kClipNorm = 1;

TensorView AllocateSums(const OpContext& context) {
  return context.arena.AllocateZero(DType::kF64, {2}, MemoryPurpose::kWorkspace);
}

int64_t DocumentsOf(const StepBenchOptions& options, int64_t length) {
  return std::max<int64_t>(1, options.tokens / length);
}

absl::Status CheckFits(const RankRuntime& rank, const StepBenchOptions& options, int64_t length) {
  ComputeShape compute =
      ComputeShapeOf(rank.context.device(), rank.context.dtype, options.model.vocab_size);
  compute.fp8 = options.fp8;
  const int64_t tokens = length * DocumentsOf(options, length);
  const int64_t needed =
      PlanTrainingMemory(ShapeOf(options.model), tokens, compute, PlanOf(options.recompute))
          .total();
  const int64_t there = rank.memory.bytes / rank.memory.sharers;
  // A GPU that does not tell how much is free says -1.
  if (rank.memory.bytes < 0 || needed <= there) return absl::OkStatus();
  constexpr double kGiB = 1024.0 * 1024 * 1024;
  return WithExitCode(
      absl::ResourceExhaustedError(absl::StrFormat(
          "a step of %d tokens takes %.1f GiB, and the %s has %.1f: measure shorter --lengths%s%s",
          tokens, static_cast<double>(needed) / kGiB, rank.memory.owner,
          static_cast<double>(there) / kGiB, tokens > length ? " or fewer --tokens" : "",
          options.recompute == Recompute::kLayer ? "" : ", or --set runtime.recompute=layer")),
      ExitCode::kOutOfMemory);
}

absl::StatusOr<std::vector<SpanTime>> ProfileOf(OpContext context, TrainingStep& step,
                                                const PackedBatch& batch, Recompute recompute) {
  const std::unique_ptr<StepTrace> trace = MakeStepTrace(context);
  context.trace = trace.get();
  double results[2];
  EK_RETURN_IF_ERROR(step.Run(context, batch, recompute, results));
  std::map<std::string, SpanTime> by_name;
  for (const TraceEvent& event : trace->Take()) {
    std::string name = event.name;
    if (absl::StartsWith(name, "layer ")) name = "layer" + name.substr(name.rfind(' '));
    SpanTime& span = by_name[name];
    span.name = name;
    ++span.calls;
    span.seconds += event.duration_us * 1e-6;
  }
  std::vector<SpanTime> profile;
  for (auto& [name, span] : by_name) profile.push_back(std::move(span));
  return profile;
}

}  // namespace

PackedBatch RandomDocuments(int64_t length, int64_t count, int64_t vocab_size) {
  PackedBatch batch;
  const Philox random(1, 2);
  uint64_t drawn = 0;
  for (int64_t i = 0; i < count; ++i) {
    std::vector<int32_t> tokens(static_cast<size_t>(length));
    for (int32_t& token : tokens) {
      token = static_cast<int32_t>(random.Bits(drawn++) % static_cast<uint64_t>(vocab_size));
    }
    std::vector<int32_t> targets(tokens.begin() + 1, tokens.end());
    targets.push_back(kIgnoredTarget);
    batch.AppendPiece(tokens, targets);
  }
  return batch;
}

absl::StatusOr<std::unique_ptr<TrainingStep>> TrainingStep::Create(const OpContext& context,
                                                                   const ModelConfig& config,
                                                                   bool fp8,
                                                                   MemoryTracker& tracker) {
  ModelSetup setup;
  setup.fp8 = fp8;
  EK_ASSIGN_OR_RETURN(Model model, Model::Create(context, config, setup, tracker));
  EK_RETURN_IF_ERROR(
      model.layout().InitializeOnDevice(context, 1, model.store().owned(), model.weights().view()));
  model.PublishWeights(context);
  EK_ASSIGN_OR_RETURN(Optimizer optimizer,
                      Optimizer::Create(context, model, AdamWConfig(), tracker));
  return std::unique_ptr<TrainingStep>(new TrainingStep(std::move(model), std::move(optimizer)));
}

void TrainingStep::ComputeGradients(const OpContext& context, const PackedBatch& batch,
                                    Recompute recompute, TensorView sums) {
  if (Fp8Scales* scales = model_.fp8_scales()) scales->BeginStep(context);
  const auto targets = static_cast<double>(std::max<int64_t>(1, batch.num_valid()));
  model_.ForwardBackward(context, batch, 1 / targets, recompute, /*is_last=*/true, sums.Rows(0, 1));
  model_.FinishGradients(context, sums.Rows(1, 2));
}

void TrainingStep::Update(const OpContext& context, TensorView sums) {
  optimizer_.Update(context, AdamWStepParams{kLearningRate, ++steps_, kClipNorm}, model_,
                    sums.Rows(1, 2));
}

absl::Status TrainingStep::Run(const OpContext& context, const PackedBatch& batch,
                               Recompute recompute, double* results) {
  const ArenaScope scope(context.arena);
  const TensorView sums = AllocateSums(context);
  ComputeGradients(context, batch, recompute, sums);
  Update(context, sums);
  EK_RETURN_IF_ERROR(ReadDoubles(context, sums, {results, 2}));
  Fp8Scales* scales = model_.fp8_scales();
  if (scales == nullptr) return absl::OkStatus();
  EK_ASSIGN_OR_RETURN(const std::vector<double> amax, scales->ReadAmax(context));
  return scales->Learn(context, amax);
}

int64_t WarmUpSteps(const OpContext& context, int64_t tokens) {
  if (context.cuda == nullptr) return 1;
  return tokens <= 32768 ? 10 : 4;
}

absl::Status CheckStepsFit(const RankRuntime& rank, const StepBenchOptions& options) {
  for (const int64_t length : options.lengths) EK_RETURN_IF_ERROR(CheckFits(rank, options, length));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<StepPoint>> MeasureSteps(
    const RankRuntime& rank, const StepBenchOptions& options,
    const std::function<void(const StepPoint&)>& tell) {
  const OpContext& context = rank.context;
  const std::set<int64_t> lengths(options.lengths.begin(), options.lengths.end());
  EK_ASSIGN_OR_RETURN(const std::unique_ptr<TrainingStep> step,
                      TrainingStep::Create(context, options.model, options.fp8, rank.tracker));
  std::vector<StepPoint> points;
  for (const int64_t length : lengths) {
    StepPoint point;
    point.length = length;
    point.documents = DocumentsOf(options, length);
    const PackedBatch batch = RandomDocuments(length, point.documents, options.model.vocab_size);
    point.model_flops =
        TrainingFlops(ShapeOf(options.model),
                      std::vector<int64_t>(static_cast<size_t>(point.documents), length))
            .total();
    absl::Status status;
    double results[2];
    const auto run = [&] { status.Update(step->Run(context, batch, options.recompute, results)); };
    for (int64_t i = 1; i < WarmUpSteps(context, point.tokens()); ++i) run();
    EK_RETURN_IF_ERROR(status);
    EK_ASSIGN_OR_RETURN(point.step_s, MedianSeconds(context, options.timing, run));
    EK_ASSIGN_OR_RETURN(point.gradients_s, MedianSeconds(context, options.timing, [&] {
                          const ArenaScope scope(context.arena);
                          step->ComputeGradients(context, batch, options.recompute,
                                                 AllocateSums(context));
                        }));
    EK_RETURN_IF_ERROR(status);
    point.peak_bytes = rank.tracker.peak_total();
    point.loss = results[0] / static_cast<double>(std::max<int64_t>(1, batch.num_valid()));
    if (options.profile) {
      EK_ASSIGN_OR_RETURN(point.profile, ProfileOf(context, *step, batch, options.recompute));
    }
    points.push_back(point);
    tell(point);
  }
  return points;
}

}  // namespace evenkeel
