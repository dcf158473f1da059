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

absl::Status BroadcastOrder(Communicator& world, ServerOrder& order) {
  int64_t values[2] = {order.goes_on, order.step};
  Work work = world.BroadcastAsync(TensorView(values, DType::kI64, {2}), /*root=*/0,
                                   "order to attention servers");
  // An evaluation or a checkpoint may take longer than any message; ranks that are gone end the
  // job.
  absl::Status status = work.Wait();
  while (absl::IsDeadlineExceeded(status) && world.rank() != 0) status = work.Wait();
  order = {values[0], values[1]};
  return status;
}

absl::StatusOr<PoolLoads> GatherLoads(Communicator& world, const ParallelPlan& plan,
                                      const ServerTimes& forward, const ServerTimes& backward,
                                      double sent_bytes) {
  constexpr int kValues = 5;
  double mine[kValues] = {forward.planned, forward.seconds, backward.planned, backward.seconds,
                          sent_bytes};
  std::vector<double> all(static_cast<size_t>(kValues * world.size()));
  EK_RETURN_IF_ERROR(world.AllGather(ConstTensorView(mine, DType::kF64, {1, kValues}),
                                     TensorView(all.data(), DType::kF64, {world.size(), kValues}),
                                     "loads of attention servers"));
  PoolLoads gathered;
  gathered.loads.resize(static_cast<size_t>(plan.pool().num_ranks()));
  for (int rank = 0; rank < world.size(); ++rank) {
    const double* row = &all[static_cast<size_t>(kValues * rank)];
    ServerLoad& load = gathered.loads[static_cast<size_t>(rank / plan.mesh.tp)];
    for (int phase = 0; phase < 2; ++phase) {
      load.planned[phase] += row[2 * phase];
      load.seconds[phase] += row[2 * phase + 1];
    }
    gathered.most_sent_bytes = std::max(gathered.most_sent_bytes, row[4]);
  }
  return gathered;
}

absl::StatusOr<std::unique_ptr<AttentionPlanner>> MakeAttentionPlanner(
    const RunConfig& config, const ParallelPlan& plan, const IndexedDataset& dataset,
    const OpContext& context, int world_rank) {
  if (plan.learns_speeds && context.cuda != nullptr) {
    return absl::InvalidArgumentError(
        "parallel.attention_speeds is measured, but on a GPU the host does not know how long "
        "attention takes: set it to equal");
  }
  EK_ASSIGN_OR_RETURN(SampleOrder order,
                      SampleOrder::Create(dataset.document_lengths(), config.data.sequence_length,
                                          static_cast<uint64_t>(config.seed)));
  PoolPlanOptions options = plan.pool_options(context.dtype);
  if (!config.parallel.attention_cost.empty()) {
    EK_ASSIGN_OR_RETURN(const AttentionCostFile file,
                        ReadAttentionCostFile(config.parallel.attention_cost));
    const AttentionHeads heads = plan.pool_heads();
    EK_ASSIGN_OR_RETURN(const AttentionCosts costs,
                        CostsOf(file, heads.num_heads, heads.value_size));
    options.forward = costs.forward;
    options.backward = costs.backward;
    options.costs_are_times = true;
  }
  return std::make_unique<AttentionPlanner>(
      plan.pool(), options, std::move(order),
      AttentionPlanner::Batches{config.train.global_batch_size, config.train.micro_batch_size},
      world_rank / plan.mesh.tp);
}

absl::StatusOr<std::unique_ptr<AttentionServer>> AttentionServer::Create(const RunConfig& config,
                                                                         const RankRuntime& rank) {
  EK_ASSIGN_OR_RETURN(ParallelPlan plan,
                      PlanParallel(config.model, config.parallel, rank.comm.size()));
  std::unique_ptr<AttentionServer> server(new AttentionServer(config, rank, std::move(plan)));
  EK_ASSIGN_OR_RETURN(const IndexedDataset dataset,
                      IndexedDataset::Open(config.data.train, config.model.vocab_size));
  Communicator& device_comm = rank.gpu_comm == nullptr ? rank.comm : rank.gpu_comm->world();
  EK_ASSIGN_OR_RETURN(server->mesh_, MeshComms::Create(device_comm, server->plan_.comms()));
  EK_ASSIGN_OR_RETURN(server->planner_, MakeAttentionPlanner(config, server->plan_, dataset,
                                                             rank.context, rank.comm.rank()));
  return server;
}

absl::Status AttentionServer::Serve(int64_t step) {
  rank_.comm.SetStep(step + 1);
  if (rank_.gpu_comm != nullptr) rank_.gpu_comm->world().SetStep(step + 1);
  PoolStep plan = planner_->Take(step);
  ServerTimes times[2];
  const PoolAccess access{&rank_.context, mesh_->pool(), plan_.pool_heads(), plan_.server_mode,
                          times};
  const int64_t head_size = std::max(access.heads.key_size, access.heads.value_size);
  for (PoolTick& tick : plan.ticks) {
    const ArenaScope scope(rank_.context.arena);
    Prepare(rank_.context, head_size, tick);
    ServeTick(access, tick);
  }
  EK_RETURN_IF_ERROR(WaitForOps(rank_.context));
  EK_RETURN_IF_ERROR(mesh_->log().status());
  EK_ASSIGN_OR_RETURN(const PoolLoads loads, GatherLoads(rank_.comm, plan_, times[0], times[1],
                                                         mesh_->log().TakeSentBytes()));
  if (plan_.learns_speeds) planner_->Learn(loads.loads);
  return absl::OkStatus();
}

absl::Status AttentionServer::Run() {
  while (true) {
    ServerOrder order;
    EK_RETURN_IF_ERROR(BroadcastOrder(rank_.comm, order));
    if (order.goes_on == 0) return absl::OkStatus();
    EK_RETURN_IF_ERROR(Serve(order.step));
  }
}

}  // namespace evenkeel
