// A rank that holds no weights and computes attention for those that do
// (parallel.attention_servers): it takes part in the ticks of every step, and of every round of an
// evaluation, as the plan says, and is told which comes next (launch/server_line.h).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/server_pass.h"
#include "launch/attention_planner.h"
#include "launch/rank_runtime.h"
#include "launch/run_config.h"
#include "launch/server_line.h"
#include "launch/training_data.h"
#include "parallel/mesh_comms.h"
#include "runtime/data/indexed_dataset.h"

namespace evenkeel {

// The planner of a run, for a rank of the pool. `held_out`: none without evaluations.
absl::StatusOr<std::unique_ptr<AttentionPlanner>> MakeAttentionPlanner(
    const RunConfig& config, const ParallelPlan& plan, const IndexedDataset& dataset,
    const std::optional<HeldOutData>& held_out, const OpContext& context, int pool_rank);

class AttentionServer {
 public:
  // Collective with Trainer::Create on the other ranks, and with the same plan.
  static absl::StatusOr<std::unique_ptr<AttentionServer>> Create(const RunConfig& config,
                                                                 ParallelPlan plan,
                                                                 const RankRuntime& rank,
                                                                 std::unique_ptr<ServerLine> line);
  // Serves until training ends, or this server is not needed any more.
  absl::Status Run();

 private:
  AttentionServer(const RunConfig& config, const RankRuntime& rank, ParallelPlan plan,
                  std::unique_ptr<ServerLine> line, IndexedDataset dataset,
                  std::optional<HeldOutData> held_out)
      : config_(config),
        rank_(rank),
        plan_(std::move(plan)),
        line_(std::move(line)),
        dataset_(std::move(dataset)),
        held_out_(std::move(held_out)),
        clocks_(MakeServerClocks(rank.context)) {}
  Communicator& device_world() const;
  // For the servers that are left.
  absl::Status MakePlanner();
  absl::Status Serve(const ServerOrder& order);

  RunConfig config_;
  RankRuntime rank_;
  ParallelPlan plan_;
  std::unique_ptr<ServerLine> line_;
  IndexedDataset dataset_;
  std::optional<HeldOutData> held_out_;
  std::vector<ServerClock> clocks_;  // of the pass
  std::unique_ptr<MeshComms> mesh_;
  std::unique_ptr<AttentionPlanner> planner_;
};

}  // namespace evenkeel
