// A rank that holds no weights and computes attention for those that do
// (parallel.attention_servers): it takes part in every step's ticks as the plan says, and learns
// between steps whether there is another one.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "launch/attention_planner.h"
#include "launch/rank_runtime.h"
#include "launch/run_config.h"
#include "parallel/mesh_comms.h"
#include "runtime/data/indexed_dataset.h"

namespace evenkeel {

// What rank 0 tells dedicated servers before each step.
struct ServerOrder {
  int64_t goes_on = 0;  // 0: training has ended
  int64_t step = 0;     // steps done
};
absl::Status BroadcastOrder(Communicator& world, ServerOrder& order);

// What each server of the pool measured in a step, on every rank of the world, the dedicated ones
// included; and the sums over tensor-parallel ranks, by rank of the pool. Collective.
struct PoolLoads {
  std::vector<ServerLoad> loads;
  double most_sent_bytes = 0;  // of any rank
};
absl::StatusOr<PoolLoads> GatherLoads(Communicator& world, const ParallelPlan& plan,
                                      const ServerTimes& forward, const ServerTimes& backward,
                                      double sent_bytes);

// The planner of a run, for a rank of the world.
absl::StatusOr<std::unique_ptr<AttentionPlanner>> MakeAttentionPlanner(
    const RunConfig& config, const ParallelPlan& plan, const IndexedDataset& dataset,
    const OpContext& context, int world_rank);

class AttentionServer {
 public:
  // Collective with Trainer::Create on the other ranks.
  static absl::StatusOr<std::unique_ptr<AttentionServer>> Create(const RunConfig& config,
                                                                 const RankRuntime& rank);
  // Serves until training ends.
  absl::Status Run();

 private:
  AttentionServer(const RunConfig& config, const RankRuntime& rank, ParallelPlan plan)
      : config_(config), rank_(rank), plan_(std::move(plan)) {}
  absl::Status Serve(int64_t step);

  RunConfig config_;
  RankRuntime rank_;
  ParallelPlan plan_;
  std::unique_ptr<MeshComms> mesh_;
  std::unique_ptr<AttentionPlanner> planner_;
};

}  // namespace evenkeel
