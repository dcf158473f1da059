#include "launch/attention_server.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "launch/attention_cost_file.h"
#include "models/pooled_pass.h"
#include "runtime/base/status_macros.h"
#include "runtime/ops/gpu.h"

namespace evenkeel {

absl::StatusOr<std::unique_ptr<AttentionPlanner>> MakeAttentionPlanner(
    const RunConfig& config, const ParallelPlan& plan, const IndexedDataset& dataset,
    const std::optional<HeldOutData>& held_out, const OpContext& context, int pool_rank) {
  EK_ASSIGN_OR_RETURN(SampleOrder order,
                      SampleOrder::Create(dataset.document_lengths(), config.data.sequence_length,
                                          static_cast<uint64_t>(config.seed)));
  EK_ASSIGN_OR_RETURN(const PoolPlanOptions options, PlanningOf(config, plan, context.dtype));
  std::optional<EvaluationSamples> samples;
  if (held_out.has_value()) samples = held_out->samples;
  return std::make_unique<AttentionPlanner>(
      plan.pool(), options, std::move(order),
      BatchSizes{config.train.global_batch_size, config.train.micro_batch_size}, pool_rank,
      std::move(samples));
}

absl::StatusOr<std::unique_ptr<AttentionServer>> AttentionServer::Create(
    const RunConfig& config, ParallelPlan plan, const RankRuntime& rank,
    std::unique_ptr<ServerLine> line) {
  EK_ASSIGN_OR_RETURN(IndexedDataset dataset,
                      OpenDataset("data.train", config.data.train, config.model.vocab_size));
  EK_ASSIGN_OR_RETURN(std::optional<HeldOutData> held_out, HeldOutData::Open(config, plan.mesh));
  std::unique_ptr<AttentionServer> server(new AttentionServer(
      config, rank, std::move(plan), std::move(line), std::move(dataset), std::move(held_out)));
  EK_ASSIGN_OR_RETURN(server->mesh_,
                      MeshComms::Create(server->device_world(), server->plan_.comms()));
  server->line_->Watch(server->device_world(), *server->mesh_);
  EK_RETURN_IF_ERROR(server->MakePlanner());
  return server;
}

Communicator& AttentionServer::device_world() const {
  return rank_.gpu_comm == nullptr ? rank_.comm : rank_.gpu_comm->world();
}

absl::Status AttentionServer::MakePlanner() {
  const std::vector<int>& servers = line_->servers();
  const auto number =
      (rank_.comm.rank() - static_cast<int>(plan_.mesh.num_ranks())) / plan_.mesh.tp;
  const auto place = std::find(servers.begin(), servers.end(), number) - servers.begin();
  plan_.num_dedicated = static_cast<int>(servers.size());
  EK_ASSIGN_OR_RETURN(planner_,
                      MakeAttentionPlanner(config_, plan_, dataset_, held_out_, rank_.context,
                                           plan_.pool().num_owners() + static_cast<int>(place)));
  return absl::OkStatus();
}

absl::Status AttentionServer::Serve(const ServerOrder& order) {
  const bool trains = order.work == PoolWork::kStep;
  const int64_t step = order.step + (trains ? 1 : 0);  // as the mesh counts it
  rank_.comm.SetStep(step);
  if (rank_.gpu_comm != nullptr) rank_.gpu_comm->world().SetStep(step);
  if (plan_.learns_speeds && !order.loads.empty()) planner_->Learn(order.loads);
  PoolStep plan = trains ? planner_->Take(order.step) : planner_->TakeEvaluation(order.round);
  const PoolAccess access{&rank_.context, mesh_->pool(), plan_.pool_heads(), plan_.server_mode,
                          clocks_.data()};
  for (PoolTick& tick : plan.ticks) {
    const ArenaScope scope(rank_.context.arena);
    Prepare(rank_.context, access.heads.of_tasks(), tick);
    ServeTick(access, tick);
  }
  EK_RETURN_IF_ERROR(WaitForOps(rank_.context));
  EK_RETURN_IF_ERROR(mesh_->log().status());
  return line_->Report({clocks_[0].Take(), clocks_[1].Take(), mesh_->log().TakeSentBytes()});
}

absl::Status AttentionServer::Run() {
  while (true) {
    const absl::StatusOr<ServerOrder> order = line_->NextOrder();
    if (line_->misses_server()) {
      EK_ASSIGN_OR_RETURN(const bool serves, line_->Rejoin(device_world(), *mesh_));
      if (!serves) return absl::OkStatus();
      EK_RETURN_IF_ERROR(MakePlanner());
      continue;
    }
    EK_RETURN_IF_ERROR(order.status());
    if (order->work == PoolWork::kNone) return absl::OkStatus();
    EK_RETURN_IF_ERROR(Serve(*order));
  }
}

}  // namespace evenkeel
