// PlanParallel, and what follows from a plan.
#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "launch/parallel_config.h"
#include "parallel/layer_split.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/communicator.h"

namespace evenkeel {
namespace {

// Chunks of units that data-parallel ranks share: each part begins at a multiple of 64 elements,
// which suits every kernel.
constexpr int64_t kPartMultiple = 64;

absl::Status CheckPool(const ParallelConfig& config, bool has_softmax) {
  if (config.attention != SoftmaxExchange::kDisaggregated || !has_softmax) {
    if (config.attention_servers == 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("parallel.attention_servers is ", config.attention_servers, ", but ",
                     has_softmax ? "parallel.attention is not disaggregated"
                                 : "no layer of the model has softmax attention",
                     ": set it to in_place"));
  }
  if (config.split != SplitPolicy::kAuto) {
    return absl::InvalidArgumentError(
        "parallel.attention: disaggregated cuts samples in a way of its own: leave parallel.split "
        "at auto");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ParallelPlan> PlanParallel(const ModelConfig& model, const ParallelConfig& config,
                                          int64_t world_size) {
  ParallelPlan plan;
  plan.model = model;
  plan.virtual_stages = config.virtual_stages;
  plan.sharding = config.zero;
  const bool has_softmax = model.has_kind(LayerKind::kSoftmax);
  EK_RETURN_IF_ERROR(CheckPool(config, has_softmax));
  plan.num_dedicated = config.attention_servers;
  plan.least_dedicated = config.attention_servers_min;
  if (plan.num_dedicated > 0 && plan.least_dedicated > plan.num_dedicated) {
    return absl::InvalidArgumentError(
        absl::StrCat("parallel.attention_servers_min is ", plan.least_dedicated,
                     ", more than parallel.attention_servers, which is ", plan.num_dedicated));
  }
  const int64_t servers = int64_t{1} * plan.num_dedicated * config.mesh.tp;
  if (servers >= world_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "parallel.attention_servers ", plan.num_dedicated, " at tp ", config.mesh.tp, " are ",
        servers, " ranks, and there are ", world_size, ": start more, or take fewer servers"));
  }
  const int64_t mesh_ranks = world_size - servers;
  MeshLimits limits;
  limits.num_layers = model.num_layers;
  limits.num_heads = model.num_heads;
  limits.num_kv_heads = has_softmax ? model.kv_heads() : 0;
  limits.vocab_size = model.vocab_size;
  limits.intermediate_size = model.intermediate_size;
  limits.virtual_stages = config.virtual_stages;
  limits.cp_over_heads =
      has_softmax && config.mesh.cp > 1 && config.attention == SoftmaxExchange::kUlysses;
  limits.shares_state = config.zero != ShardingStage::kNone;
  limits.other_ranks = servers;
  EK_ASSIGN_OR_RETURN(plan.mesh, CompleteMesh(config.mesh, mesh_ranks, limits));
  EK_RETURN_IF_ERROR(CheckMesh(plan.mesh, mesh_ranks, limits));
  auto stage_begin =
      SplitLayers(model.num_layers, plan.mesh.pp * config.virtual_stages, config.layers_per_stage);
  if (!stage_begin.ok()) {
    return absl::Status(
        stage_begin.status().code(),
        absl::StrCat("parallel.layers_per_stage: ", std::string(stage_begin.status().message())));
  }
  plan.stage_begin = *std::move(stage_begin);
  plan.context.softmax = config.attention;
  if (plan.pools_attention()) {
    if (!has_softmax) plan.context.softmax = SoftmaxExchange::kGather;  // nothing to pool
    plan.disaggregation = {config.attention_tolerance, config.attention_shard};
    plan.server_mode = {
        .overlaps = config.ping_pong == PingPong::kOn || config.ping_pong == PingPong::kAuto,
        .signals = config.attention_signals};
    plan.learns_speeds = config.attention_learns_speeds;
  }
  plan.context.states = config.linear_attention;
  plan.tp_transport = config.tp_transport;
  const bool zigzag =
      config.split == SplitPolicy::kZigzag || (config.split == SplitPolicy::kAuto && has_softmax);
  plan.context.split = zigzag ? SequenceSplit::kZigzag : SequenceSplit::kContiguous;
  if (plan.pools_attention()) {
    plan.context.split =
        config.ping_pong == PingPong::kOff ? SequenceSplit::kContiguous : SequenceSplit::kHalves;
  }
  return plan;
}

PoolShape ParallelPlan::pool() const {
  PoolShape pool;
  pool.mesh = mesh;
  for (int stage = 0; stage < mesh.pp * virtual_stages; ++stage) {
    pool.softmax_layers.push_back(0);
    for (int64_t layer = stage_begin[static_cast<size_t>(stage)];
         layer < stage_begin[static_cast<size_t>(stage) + 1]; ++layer) {
      if (model.kind(layer) == LayerKind::kSoftmax) ++pool.softmax_layers.back();
    }
  }
  pool.num_dedicated = num_dedicated;
  pool.split = context.split;
  return pool;
}

AttentionHeads ParallelPlan::pool_heads() const {
  int64_t layer = 0;
  while (model.kind(layer) != LayerKind::kSoftmax) ++layer;
  const BlockSpec spec = MakeBlockSpec(model, PartOf(MeshCoord()), layer);
  return {spec.num_heads, spec.num_kv_heads, spec.core_qk_size(), spec.head_size, spec.scale};
}

PoolPlanOptions ParallelPlan::pool_options(DType dtype) const {
  PoolPlanOptions options;
  options.plan = disaggregation;
  const AttentionHeads heads = pool_heads();
  const int64_t size = SizeOf(dtype), wide = SizeOf(WideDType(dtype));
  options.bytes = {heads.q_width() * size, heads.kv_width() * size, heads.out_width() * size,
                   heads.num_heads * wide, heads.kv_width() * wide};
  // Where q and k are normalised on their way they lie in memory that does not last.
  options.has_residents = !model.qk_norm;
  const PoolShape shape = pool();
  options.speed.assign(static_cast<size_t>(shape.num_ranks()), 1);
  // Dedicated servers serve alone.
  if (num_dedicated > 0) {
    std::fill_n(options.speed.begin(), static_cast<size_t>(shape.num_owners()), 0.0);
  }
  return options;
}

MeshCommsOptions ParallelPlan::comms() const {
  MeshCommsOptions options;
  options.shape = mesh;
  options.pools_attention = pools_attention();
  options.num_dedicated = num_dedicated * mesh.tp;
  if (model.has_kind(LayerKind::kSoftmax)) {
    options.key_value_copies = static_cast<int>(std::max<int64_t>(1, mesh.tp / model.kv_heads()));
  }
  options.ties_stages = model.tie_embeddings && mesh.pp > 1;
  options.is_interleaved = virtual_stages > 1;
  options.copies_tp_rows = tp_transport == RowTransport::kCopyEngines;
  return options;
}

ModelPart ParallelPlan::PartOf(const MeshCoord& coord) const {
  ModelPart part;
  for (int chunk = 0; chunk < virtual_stages; ++chunk) {
    const auto stage = static_cast<size_t>(chunk * mesh.pp + coord.pp);
    part.chunks.push_back({stage_begin[stage], stage_begin[stage + 1]});
  }
  part.is_first = coord.pp == 0;
  part.is_last = coord.pp == mesh.pp - 1;
  part.tp = mesh.tp;
  part.tp_rank = coord.tp;
  if (sharding != ShardingStage::kNone) part.unit_multiple = kPartMultiple * mesh.dp * mesh.cp;
  return part;
}

RankLayout ParallelPlan::LayoutOf(const MeshCoord& coord) const {
  RankLayout layout;
  layout.mesh = mesh;
  layout.coord = coord;
  layout.sharding = sharding;
  layout.context = context;
  layout.key_value_copies = comms().key_value_copies;
  if (mesh.tp > 1 && comms().copies_tp_rows) layout.window_bytes = Communicator::kPeerWindowBytes;
  layout.num_dedicated = num_dedicated;
  layout.disaggregation = disaggregation;
  return layout;
}

Placement ParallelPlan::placement() const {
  return [plan = *this](int rank) {
    const MeshCoord at = *CoordOfRank(plan.mesh, static_cast<int>(plan.mesh.num_ranks()), rank);
    const int ranks = plan.mesh.dp * plan.mesh.cp, place = at.dp * plan.mesh.cp + at.cp;
    const ShardingStage stage = ranks > 1 ? plan.sharding : ShardingStage::kNone;
    ParameterLayout layout(plan.model, plan.PartOf(at));
    auto owned = OwnedRanges(layout.unit_begin(), stage, ranks, place);
    return RankPlacement{std::move(layout), std::move(owned),
                         stage != ShardingStage::kNone || place == 0};
  };
}

}  // namespace evenkeel
