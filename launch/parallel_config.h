// The `parallel` section of a run config: how a run is spread over its ranks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/context_plan.h"
#include "attention/pool_step.h"
#include "attention/server_pass.h"
#include "models/model.h"
#include "models/model_config.h"
#include "models/state_placement.h"
#include "parallel/mesh.h"
#include "parallel/mesh_comms.h"
#include "parallel/parameter_store.h"
#include "scheduler/rank_layout.h"

namespace evenkeel {

class ConfigFields;

// How the tokens of a micro-batch are split over context-parallel ranks.
enum class SplitPolicy { kAuto, kContiguous, kZigzag };

// Whether a micro-batch with disaggregated attention is computed in two halves.
enum class PingPong {
  kAuto,    // on a GPU; on CPUs messages make no progress while a rank computes
  kOn,      // one's messages travel while the other is computed
  kOff,     // the micro-batch is one, and messages are waited for where they are sent
  kSerial,  // two halves, every message waited for at once: for measuring
};

// How rows of tensor-parallel ranks travel between GPUs.
enum class RowTransport {
  kNccl,
  kCopyEngines,  // within a host; elsewhere NCCL does it
};

struct ParallelConfig {
  MeshShape mesh{1, 0, 1, 1};  // dp 0: what is left of the ranks
  int virtual_stages = 1;
  std::vector<int64_t> layers_per_stage;  // empty: evenly
  ShardingStage zero = ShardingStage::kNone;
  SoftmaxExchange attention = SoftmaxExchange::kGather;
  StateExchange linear_attention = StateExchange::kGather;
  RowTransport tp_transport = RowTransport::kNccl;
  SplitPolicy split = SplitPolicy::kAuto;
  // With attention: disaggregated.
  int attention_servers = 0;      // dedicated ranks a tensor-parallel place; 0: those of the mesh
  int attention_servers_min = 1;  // with fewer left of the dedicated ones, training stops
  bool attention_learns_speeds = false;
  std::string attention_cost;  // file of AttentionCostFile; empty: pairs are counted
  double attention_tolerance = 0.05;
  int64_t attention_shard = 128;
  PingPong ping_pong = PingPong::kAuto;
  bool attention_signals = false;
};

void DescribeFields(ConfigFields& fields, ParallelConfig& config);

// A run's spread over its ranks, worked out and checked.
struct ParallelPlan {
  ModelConfig model;
  MeshShape mesh;
  int virtual_stages = 1;
  std::vector<int64_t>
      stage_begin;  // first layer of each of pp * virtual_stages stages, and the end
  ShardingStage sharding = ShardingStage::kNone;
  ContextStrategy context;
  DisaggregationOptions disaggregation;  // where attention is pooled
  ServerPassMode server_mode;
  bool learns_speeds = false;  // plans follow what servers measured
  RowTransport tp_transport = RowTransport::kNccl;
  int num_dedicated = 0;    // attention servers beside the mesh, a tensor-parallel place
  int least_dedicated = 1;  // with fewer left, training stops

  // Ranks beyond those of the mesh are dedicated servers, tensor-parallel places in turn.
  int num_ranks() const { return static_cast<int>(mesh.num_ranks()) + num_dedicated * mesh.tp; }
  bool is_dedicated(int rank) const { return rank >= mesh.num_ranks(); }

  // Whether softmax attention is computed by a pool of ranks.
  bool pools_attention() const { return context.softmax == SoftmaxExchange::kDisaggregated; }
  PoolShape pool() const;
  // Every rank serves at the same speed, at a cost that counts (query, key) pairs. `dtype`: what
  // activations are kept in.
  PoolPlanOptions pool_options(DType dtype) const;
  AttentionHeads pool_heads() const;

  MeshCommsOptions comms() const;
  // What the rank at `coord` holds; without axes.
  ModelPart PartOf(const MeshCoord& coord) const;
  // Its place, as planning sees it.
  RankLayout LayoutOf(const MeshCoord& coord) const;
  // What every rank of the mesh holds.
  Placement placement() const;
};

// As many ranks as the degrees multiply to, with one replica where dp is left open, and dedicated
// servers; at most the largest int.
int64_t FewestRanks(const ParallelConfig& config);

// Fails with one message that names all degrees and what would do.
absl::StatusOr<ParallelPlan> PlanParallel(const ModelConfig& model, const ParallelConfig& config,
                                          int64_t world_size);

}  // namespace evenkeel
