#include "launch/plan_report.h"

#include <algorithm>
#include <utility>

#include "models/model_shape.h"
#include "runtime/base/status_macros.h"

namespace evenkeel {
namespace {

// Of a rank, where the config does not say.
constexpr double kAssumedFlops = 1e12;

// Numbers of micro-batches of all replicas.
void CountMicroBatches(const TrainConfig& train, PlanReport* report) {
  report->micro_batches =
      MicroBatchesPerReplica(report->config, report->plan, train.micro_batch_size);
  const int64_t full = train.global_batch_size / train.micro_batch_size;
  report->short_micro_batches = train.global_batch_size % train.micro_batch_size > 0 ? 1 : 0;
  report->empty_micro_batches =
      report->micro_batches * report->plan.mesh.dp - full - report->short_micro_batches;
}

// What is computed again of a forward pass, in FLOPs of three; the feed-forward is not told apart.
double FlopsAgain(Recompute recompute, const StepFlops& flops) {
  switch (recompute) {
    case Recompute::kNone:
    case Recompute::kMlp:
      return 0;
    case Recompute::kAllButAttention:
      return flops.matmul;
    case Recompute::kLayer:
      return flops.total();
  }
  return 0;
}

// Seconds of each stage, forward and backward, of a full micro-batch. Backward is twice forward,
// and once more what is computed again.
StageCosts CostsOfStages(const PlanReport& report) {
  const MeshShape& mesh = report.plan.mesh;
  const int chunks = report.plan.virtual_stages;
  const RunConfig& config = report.config;
  const int64_t samples = std::min(config.train.micro_batch_size, config.train.global_batch_size);
  StageCosts costs;
  costs.forward.resize(static_cast<size_t>(mesh.pp * chunks));
  costs.backward.resize(costs.forward.size());
  for (int chunk = 0; chunk < chunks; ++chunk) {
    for (int rank = 0; rank < mesh.pp; ++rank) {
      // The stage alone, of all tensor- and context-parallel ranks together.
      ModelPart part;
      const auto stage = static_cast<size_t>(chunk * mesh.pp + rank);
      part.chunks.push_back({report.plan.stage_begin[stage], report.plan.stage_begin[stage + 1]});
      part.is_first = stage == 0;
      part.is_last = stage + 1 == costs.forward.size();
      const StepFlops flops =
          TrainingFlops(ShapeOf(config.model, part), {config.data.sequence_length});
      const double seconds = static_cast<double>(samples) / (mesh.tp * mesh.cp) / 3 /
                             report.assumed_flops;  // a FLOP's, of a third of them
      costs.forward[stage] = flops.total() * seconds;
      costs.backward[stage] =
          2 * costs.forward[stage] + FlopsAgain(config.runtime.recompute, flops) * seconds;
    }
  }
  return costs;
}

}  // namespace

const char* DeviceText(Device device) {
  return device == Device::kCuda ? "cuda" : "cpu";
}

const char* DTypeText(DType dtype) {
  return dtype == DType::kBF16 ? "bfloat16" : dtype == DType::kF64 ? "float64" : "float32";
}

absl::StatusOr<PlanReport> MakePlanReport(const std::string& config_file, const RunConfig& config,
                                          int64_t ranks) {
  PlanReport report;
  report.config_file = config_file;
  report.config = config;
  if (ranks == 0) ranks = FewestRanks(config.parallel);
  EK_ASSIGN_OR_RETURN(report.plan, PlanParallel(config.model, config.parallel, ranks));
  report.model = ShapeOf(config.model);
  report.flops = TrainingFlops(report.model, {config.data.sequence_length});
  for (RankKind& kind : KindsOfRanks(report.plan)) {
    KindReport each;
    each.owned_parameters = OwnedParameters(report.plan, kind);
    each.memory = MemoryOf(config, report.plan, kind, config.train.micro_batch_size,
                           config.runtime.recompute);
    each.volume = VolumeOf(config, report.plan, kind);
    each.kind = std::move(kind);
    report.kinds.push_back(std::move(each));
  }
  std::stable_sort(
      report.kinds.begin(), report.kinds.end(),
      [](const KindReport& a, const KindReport& b) { return a.memory.total() > b.memory.total(); });
  CountMicroBatches(config.train, &report);
  report.assumed_flops =
      config.runtime.peak_gflops > 0 ? config.runtime.peak_gflops * 1e9 : kAssumedFlops;
  if (report.plan.mesh.pp > 1) {
    report.timetable =
        SimulateSchedule(InterleavedOneForwardOneBackward(
                             report.plan.mesh.pp, report.plan.virtual_stages, report.micro_batches),
                         CostsOfStages(report));
  }
  return report;
}

}  // namespace evenkeel
