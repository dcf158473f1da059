// How the trainer gets the gradients of a step, with attention of its own or of a pool.
#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/attention_server.h"
#include "launch/trainer.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/gpu.h"

namespace evenkeel {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

absl::Status Trainer::MakePlanner() {
  if (mesh_ranks_.servers != nullptr) {
    plan_.num_dedicated = static_cast<int>(mesh_ranks_.servers->servers().size());
  }
  EK_ASSIGN_OR_RETURN(attention_planner_,
                      MakeAttentionPlanner(config_, plan_, data_.dataset(), held_out_, context_,
                                           comm_.rank() / plan_.mesh.tp));
  return absl::OkStatus();
}

absl::Status Trainer::TrainBatches(const std::vector<PackedBatch>& batches, double scale,
                                   TensorView loss_sum) {
  attention_ = AttentionMetrics();
  if (attention_planner_ == nullptr) {
    return pipeline_.Train(batches, scale, config_.runtime.recompute, loss_sum);
  }
  PoolStep step = attention_planner_->Take(progress_.step);
  attention_.servers = plan_.pool().num_ranks();
  attention_.planning_seconds = step.planning_seconds;
  attention_.planning_wait_seconds = attention_planner_->waited_seconds();
  double heaviest = 0, mean = 0;
  for (const PoolTick& tick : step.ticks) {
    for (size_t number = 0; number < tick.layer_of.size(); ++number) {
      heaviest += tick.layer(number).heaviest_load;
      mean += tick.layer(number).mean_load;
    }
  }
  attention_.planned_imbalance = mean > 0 ? heaviest / mean : 1;
  return pipeline_.TrainPooled(batches, scale, config_.runtime.recompute, loss_sum, Pool(), step);
}

PoolSetup Trainer::Pool() const {
  const auto micro_batches =
      MicroBatchesOfRank(progress_.step, config_.train.global_batch_size,
                         config_.train.micro_batch_size, mesh_->coord().dp, mesh_->shape().dp);
  return {mesh_->pool(), plan_.pool_heads(), plan_.server_mode,
          static_cast<int64_t>(micro_batches.size())};
}

RankLoad Trainer::TakeLoad() {
  return {pipeline_.TakeServerTimes(PipelinePhase::kForward),
          pipeline_.TakeServerTimes(PipelinePhase::kBackward), mesh_->log().sent_bytes()};
}

void Trainer::NoteLoads(const PoolLoads& pool) {
  attention_.most_sent_bytes = pool.most_sent_bytes;
  attention_.measured_imbalance = MeasuredImbalance(pool.loads);
  if (plan_.learns_speeds) attention_planner_->Learn(pool.loads);
}

absl::Status Trainer::ShareLoads() {
  if (attention_planner_ == nullptr || mesh_ranks_.servers != nullptr) return absl::OkStatus();
  EK_ASSIGN_OR_RETURN(const PoolLoads pool, GatherLoads(comm_, plan_.mesh.tp, TakeLoad()));
  NoteLoads(pool);
  return absl::OkStatus();
}

absl::Status Trainer::OrderServers(PoolWork work, int64_t round) {
  if (mesh_ranks_.servers == nullptr) return absl::OkStatus();
  // They learn from each pass once, as this rank has.
  return mesh_ranks_.servers->Order(
      {work, progress_.step, round, std::exchange(loads_, std::vector<ServerLoad>())});
}

absl::StatusOr<std::optional<PoolLoads>> Trainer::CollectServerLoads() {
  EK_RETURN_IF_ERROR(mesh_->log().status());
  // On a GPU only the end of the pass tells whether its messages came.
  if (mesh_ranks_.servers->outlives_servers()) EK_RETURN_IF_ERROR(WaitForOps(context_));
  const bool is_interrupted = mesh_->pool() != nullptr && mesh_->pool()->is_interrupted();
  bool is_whole = true;
  EK_ASSIGN_OR_RETURN(PoolLoads pool,
                      mesh_ranks_.servers->Collect(TakeLoad(), is_interrupted, &is_whole));
  if (!is_whole) return std::nullopt;
  return pool;
}

absl::Status Trainer::ReplaceServers(int64_t step, const char* redone) {
  ServerLine& servers = *mesh_ranks_.servers;
  const double begin = Now();
  Communicator& device_world = gpu_comm_ == nullptr ? world_ : gpu_comm_->world();
  EK_ASSIGN_OR_RETURN(const std::string who, servers.Regroup(device_world, *mesh_));
  const auto left = static_cast<int>(servers.servers().size());
  if (report_.has_value()) {
    report_->Fault(step, absl::StrFormat("lost of the attention servers: %s; %d left%s", who, left,
                                         left < plan_.least_dedicated
                                             ? ""
                                             : absl::StrFormat(", %s is computed again (%.1f s)",
                                                               redone, Now() - begin)));
  }
  if (left < plan_.least_dedicated) {
    has_too_few_servers_ = true;
    if (report_.has_value()) report_->Finish();
    return WithExitCode(
        absl::CancelledError(absl::StrCat(
            "of the attention servers ", left, " are left, fewer than ", plan_.least_dedicated,
            " (parallel.attention_servers_min): stopped at step ", progress_.step,
            config_.checkpoint.every >= 0 ? ", saved; the same command goes on from there"
                                          : "; nothing was saved, as checkpoint.every is -1")),
        ExitCode::kPeersLost);
  }
  return MakePlanner();
}

absl::Status Trainer::ComputeGradients(const std::vector<PackedBatch>& batches, double scale,
                                       TensorView sums) {
  while (true) {
    EK_RETURN_IF_ERROR(OrderServers(PoolWork::kStep, /*round=*/0));
    EK_RETURN_IF_ERROR(TrainBatches(batches, scale, sums.Rows(0, 1)));
    model_.FinishGradients(context_, sums.Rows(1, 2));
    if (mesh_ranks_.servers == nullptr) return absl::OkStatus();
    EK_ASSIGN_OR_RETURN(const std::optional<PoolLoads> loads, CollectServerLoads());
    if (loads.has_value()) {
      loads_ = loads->loads;
      NoteLoads(*loads);
      return absl::OkStatus();
    }
    EK_RETURN_IF_ERROR(ReplaceServers(progress_.step + 1, "the step"));
    model_.DropGradients(context_);
    SetZero(context_, sums);
  }
}

}  // namespace evenkeel
