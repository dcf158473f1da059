// How a trainer is made, restores or draws the weights, and says what it is about to do.
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/machine.h"
#include "launch/output_file.h"
#include "launch/run_folder.h"
#include "launch/trainer.h"
#include "models/model_shape.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/agreement.h"
#include "runtime/ops/gpu.h"

namespace evenkeel {
namespace {

int64_t BucketElements(const RuntimeConfig& config, const OpContext& context) {
  int64_t mib = config.bucket_mb;
  if (mib == 0) mib = context.cuda == nullptr ? 4 : 64;
  return (mib << 20) / SizeOf(context.wide_dtype());
}

}  // namespace

Trainer::Trainer(const RunConfig& config, const RankRuntime& rank, ParallelPlan plan,
                 MeshRanks mesh_ranks, std::unique_ptr<MeshComms> mesh, TrainingData data,
                 Model model, Optimizer optimizer)
    : config_(config),
      context_(rank.context),
      world_(rank.comm),
      mesh_ranks_(std::move(mesh_ranks)),
      comm_(mesh_ranks_.comm == nullptr ? rank.comm : *mesh_ranks_.comm),
      gpu_comm_(rank.gpu_comm),
      tracker_(rank.tracker),
      plan_(std::move(plan)),
      mesh_(std::move(mesh)),
      data_(std::move(data)),
      model_(std::move(model)),
      optimizer_(std::move(optimizer)),
      pipeline_(context_, model_, mesh_->links(), mesh_->shape(), mesh_->coord().pp, tracker_),
      shape_(ShapeOf(config.model)),
      start_clock_(rank.start_clock) {}

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(const RunConfig& config, ParallelPlan plan,
                                                         const RankRuntime& rank,
                                                         MeshRanks mesh_ranks) {
  EK_ASSIGN_OR_RETURN(
      TrainingData data,
      TrainingData::Open(config.data.train, config.model.vocab_size, config.data.sequence_length,
                         static_cast<uint64_t>(config.seed)));
  rank.start_clock.Lap("data");
  MeshCommsOptions comms = plan.comms();
  const ArenaScope scope(rank.context.arena);
  comms.scratch = rank.context.arena.AllocateZero(DType::kF32, {1}, MemoryPurpose::kWorkspace);
  Communicator& device_comm = rank.gpu_comm == nullptr ? rank.comm : rank.gpu_comm->world();
  EK_ASSIGN_OR_RETURN(std::unique_ptr<MeshComms> mesh, MeshComms::Create(device_comm, comms));
  rank.start_clock.Lap("groups of ranks");
  ModelSetup setup;
  setup.part = plan.PartOf(mesh->coord());
  setup.axes = mesh->axes();
  setup.context = plan.context;
  setup.sharding = plan.sharding;
  setup.bucket_elements = BucketElements(config.runtime, rank.context);
  setup.fp8 = config.runtime.fp8;
  EK_ASSIGN_OR_RETURN(Model model, Model::Create(rank.context, config.model, setup, rank.tracker));
  EK_ASSIGN_OR_RETURN(Optimizer optimizer,
                      Optimizer::Create(rank.context, model, config.train.adamw, rank.tracker));
  rank.start_clock.Lap("memory");
  std::unique_ptr<Trainer> trainer(new Trainer(config, rank, std::move(plan), std::move(mesh_ranks),
                                               std::move(mesh), std::move(data), std::move(model),
                                               std::move(optimizer)));
  EK_ASSIGN_OR_RETURN(trainer->held_out_, HeldOutData::Open(config, trainer->plan_.mesh));
  if (trainer->plan_.pools_attention()) EK_RETURN_IF_ERROR(trainer->MakePlanner());
  if (const auto& servers = trainer->mesh_ranks_.servers) {
    servers->Watch(device_comm, *trainer->mesh_);
  }
  return trainer;
}

absl::Status Trainer::Start() {
  absl::Status status;
  if (comm_.rank() == 0) {
    status = [&]() -> absl::Status {
      EK_RETURN_IF_ERROR(MakeFolders(config_.folder));
      EK_ASSIGN_OR_RETURN(lock_, RunLock::Acquire(config_.folder));
      RemoveStopFile(config_.folder);
      EK_ASSIGN_OR_RETURN(store_, CheckpointStore::Open(config_.folder + "/checkpoints",
                                                        CheckpointAccess::kReadWrite));
      EK_ASSIGN_OR_RETURN(const std::vector<int64_t> steps, store_->Steps());
      if (config_.checkpoint.resume == ResumePolicy::kNever && !steps.empty()) {
        return WithExitCode(
            absl::FailedPreconditionError(absl::StrCat(
                config_.folder, " holds checkpoints up to step ", steps.back(),
                " and checkpoint.resume is never: name another folder, or remove them")),
            ExitCode::kUsage);
      }
      return WriteTextFile(config_.folder + "/resolved.yaml", ToYaml(config_));
    }();
  }
  EK_RETURN_IF_ERROR(AgreeOnStatus(comm_, status, "run folder"));

  TrainingProgress expected;
  expected.seed = config_.seed;
  expected.sequence_length = config_.data.sequence_length;
  expected.data_fingerprint = data_.dataset().fingerprint();
  const Placement placement = plan_.placement();
  EK_ASSIGN_OR_RETURN(
      const bool restored,
      RestoreTraining(context_, comm_, placement, store_.has_value() ? &*store_ : nullptr,
                      config_.checkpoint.fallback, expected, &progress_, model_, optimizer_));
  if (!restored) {
    EK_RETURN_IF_ERROR(InitializeWeights(context_, comm_, placement,
                                         static_cast<uint64_t>(config_.seed),
                                         config_.train.init_from, model_));
  }
  saved_step_ = restored ? progress_.step : -1;
  start_clock_.Lap(restored ? "checkpoint" : "weights");

  peak_flops_ = config_.runtime.peak_gflops > 0 ? config_.runtime.peak_gflops * 1e9
                                                : MeasurePeakFlops(context_);
  start_clock_.Lap("speed of products");
  EK_ASSIGN_OR_RETURN(tracer_, StepTracer::Create(config_, comm_, gpu_comm_));
  if (comm_.rank() == 0) {
    EK_ASSIGN_OR_RETURN(report_, RunReport::Open(config_, progress_.step));
    ReportStart(restored);
  }
  return RecallEvaluation();
}

void Trainer::ReportStart(bool restored) {
  report_->Message(absl::StrFormat(
      "%s %d parameters, %d documents, %d samples an epoch, %d rank%s of %d thread%s",
      restored ? absl::StrCat("resumed at step ", progress_.step, ":") : "starting:",
      ParameterLayout(config_.model).num_parameters(), data_.dataset().num_documents(),
      data_.num_samples_per_epoch(), comm_.size(), comm_.size() > 1 ? "s" : "",
      context_.pool.num_threads(), context_.pool.num_threads() > 1 ? "s" : ""));
  if (progress_.step >= config_.train.steps) {
    report_->Message(absl::StrFormat("nothing to train: train.steps is %d; raise it to go on",
                                     config_.train.steps));
  } else if (const TraceConfig& trace = config_.trace;
             trace.steps > 0 && (trace.first_step + trace.steps <= progress_.step + 1 ||
                                 trace.first_step > config_.train.steps)) {
    report_->Message(absl::StrFormat(
        "no timeline: the run has no step from %d to %d (trace.first_step, trace.steps)",
        trace.first_step, trace.first_step + trace.steps - 1));
  }
  if (const MeshShape& mesh = plan_.mesh; mesh.pp * mesh.cp * mesh.tp > 1) {
    report_->Message(
        absl::StrFormat("mesh: pp %d x dp %d x cp %d x tp %d", mesh.pp, mesh.dp, mesh.cp, mesh.tp));
  }
  if (plan_.pools_attention()) {
    report_->Message(absl::StrFormat(
        "attention: disaggregated over %d %s%s",
        plan_.num_dedicated > 0 ? plan_.num_dedicated : plan_.pool().num_ranks(),
        plan_.num_dedicated > 0 ? "dedicated servers" : "servers",
        plan_.context.split == SequenceSplit::kHalves ? ", two nano-batches in turn" : ""));
    if (mesh_ranks_.servers != nullptr) {
      report_->Message(mesh_ranks_.servers->outlives_servers()
                           ? absl::StrFormat("a server that is silent for %g s is lost: the run "
                                             "goes on with at least %d",
                                             config_.runtime.lost_after_s, plan_.least_dedicated)
                           : "a lost server ends the run: to go on without it, start with "
                             "launch/resilient.sh in place of mpirun");
    }
  }
  if (context_.cuda != nullptr) {
    report_->Message(absl::StrFormat("on %s, peak of products %.0f TFLOP/s",
                                     FactsOf(*context_.cuda).name, peak_flops_ * 1e-12));
  }
  report_->Message("ready in " + start_clock_.Text());
}

}  // namespace evenkeel
