// The bound of buffers that travel against the plans of random batches: of pools larger than tests
// with ranks have, and of documents that make them uneven.
#include "scheduler/server_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "scheduler/tick_plan.h"
#include "tests/support/pool_draw.h"

namespace evenkeel {
namespace {

using testing_support::PoolRandom;

// As many servers as the bound lets share a document, so that it assumes nothing of batches.
constexpr int kMostServers = 8;

std::vector<ServerRows> RowsOf(const AttentionPool& pool, const DisaggregationPlan& plan,
                               bool has_residents) {
  std::vector<ServerRows> rows(static_cast<size_t>(pool.num_ranks));
  for (const AttentionLink& link : LinksOf(pool, plan.tasks)) {
    ServerRows& from = rows[static_cast<size_t>(link.from)];
    from.sent_queries += link.q_tokens;
    from.sent_keys += link.kv_tokens;
    ServerRows& to = rows[static_cast<size_t>(link.to)];
    to.held_queries += link.q_tokens;
    to.held_keys += link.kv_tokens;
  }
  for (const AttentionLink& kept : KeptRows(pool, plan.tasks, has_residents)) {
    ServerRows& on = rows[static_cast<size_t>(kept.from)];
    on.held_queries += kept.q_tokens;
    on.held_keys += kept.kv_tokens;
    on.kept_keys += kept.kv_tokens;
  }
  return rows;
}

// A sample of one document, of short ones, or of lengths that are even in logarithms.
void AppendSample(PoolRandom& draw, int64_t kind, int64_t tokens, std::vector<int64_t>* cu) {
  for (int64_t left = tokens; left > 0;) {
    double length = static_cast<double>(tokens);
    if (kind == 1) length /= 64;
    if (kind == 2) length *= std::exp(-static_cast<double>(draw(0, 1000)) / 200);
    const int64_t taken = std::clamp<int64_t>(static_cast<int64_t>(length), 1, left);
    cu->push_back(cu->back() + taken);
    left -= taken;
  }
}

struct PoolCase {
  RankLayout layout;
  TickPlanOptions options;
  bool has_residents = true;
  int64_t sample_tokens = 0, samples = 0;
  std::vector<std::vector<std::vector<int64_t>>> cu_seqlens;
};

PoolCase DrawCase(PoolRandom& draw) {
  PoolCase drawn;
  RankLayout& layout = drawn.layout;
  do {
    layout.mesh = {1 << draw(0, 2), 1 << draw(0, 3), 1 << draw(0, 2), 1};
    layout.num_dedicated = draw.OneIn(2) ? 0 : static_cast<int>(draw(1, kMostServers));
  } while (layout.num_servers() > kMostServers);
  layout.context.softmax = SoftmaxExchange::kDisaggregated;
  layout.context.split = draw.OneIn(2) ? SequenceSplit::kHalves : SequenceSplit::kContiguous;
  const double tolerances[] = {0.01, 0.05, 0.2, 1};
  const int64_t shards[] = {1, 8, 128};
  layout.disaggregation = {tolerances[draw(0, 3)], shards[draw(0, 2)]};
  drawn.options.plan = layout.disaggregation;
  drawn.options.bytes = {1024, draw.OneIn(2) ? 256 : 1024, 1024, 32, 2048};
  const int owners = layout.mesh.pp * layout.mesh.dp * layout.mesh.cp;
  drawn.options.speed.assign(static_cast<size_t>(owners + layout.num_dedicated), 1);
  if (layout.num_dedicated > 0) std::fill_n(drawn.options.speed.begin(), owners, 0.0);
  drawn.has_residents = !draw.OneIn(4);
  drawn.sample_tokens = draw(100, 6000) * layout.mesh.cp;
  drawn.samples = int64_t{1} << draw(0, 2);
  const int64_t mix = draw(0, 2);  // one sample of one document, or some, or any
  drawn.cu_seqlens.resize(static_cast<size_t>(layout.mesh.dp));
  const int64_t micro_batches = layout.mesh.pp > 1 ? draw(1, 4) : 1;
  for (size_t r = 0; r < drawn.cu_seqlens.size(); ++r) {
    for (int64_t m = 0; m < micro_batches; ++m) {
      std::vector<int64_t> cu = {0};
      for (int64_t s = 0; s < drawn.samples; ++s) {
        const bool is_first = r == 0 && m == 0 && s == 0;
        const int64_t kind = mix == 0 ? (is_first ? 0 : 1) : mix == 1 ? draw(0, 1) : draw(0, 2);
        AppendSample(draw, kind, drawn.sample_tokens, &cu);
      }
      drawn.cu_seqlens[r].push_back(std::move(cu));
    }
  }
  return drawn;
}

// The largest share of the bound that a rank of the kind takes in a step.
struct Shares {
  double mesh = 0;
  double dedicated = 0;
};

// As attention/server_pass.h makes them: q, out and lse of what is sent and held, k and v.
int64_t ForwardBytes(const LayerShape& layer, const ServerRows& rows, const ComputeShape& compute) {
  const int64_t q_and_out = layer.num_heads * (layer.qk_size + layer.v_size);
  return (rows.sent_queries + rows.held_queries) *
             (q_and_out * compute.element_bytes + layer.num_heads * compute.wide_bytes) +
         (rows.sent_keys + rows.held_keys) * layer.kv_width() * compute.element_bytes;
}

Shares SharesOf(const PoolCase& drawn, const LayerShape& layer, bool trains = true) {
  ComputeShape compute;
  compute.element_bytes = 2;
  PoolShape shape;
  shape.mesh = drawn.layout.mesh;
  shape.softmax_layers.assign(static_cast<size_t>(shape.mesh.pp), 1);
  shape.num_dedicated = drawn.layout.num_dedicated;
  shape.split = drawn.layout.context.split;
  std::vector<int64_t> bytes(static_cast<size_t>(shape.num_ranks()), 0);
  const auto micro_batches = static_cast<int64_t>(drawn.cu_seqlens.front().size());
  for (const PhaseTick& tick : trains ? SamePhaseTicks(shape.mesh.pp, 1, micro_batches)
                                      : ForwardTicks(shape.mesh.pp, 1, micro_batches)) {
    const PlannedTick planned = PlanTick(shape, drawn.options, drawn.cu_seqlens, tick);
    std::vector<int64_t> now(bytes.size(), 0);
    for (const PlannedNano& nano : planned.layers.front().nano) {
      const auto rows = RowsOf(nano.pool, nano.plan, drawn.has_residents);
      for (size_t r = 0; r < now.size(); ++r) {
        now[r] += trains ? ServerRowBytes(layer, rows[r], compute)
                         : ForwardBytes(layer, rows[r], compute);
      }
    }
    for (size_t r = 0; r < now.size(); ++r) bytes[r] = std::max(bytes[r], now[r]);
  }
  Shares shares;
  for (int rank = 0; rank < shape.num_ranks(); ++rank) {
    const bool is_mesh = rank < shape.num_owners();
    RankLayout layout = drawn.layout;
    layout.coord.cp = is_mesh ? rank % shape.mesh.cp : 0;
    const MicroBatchTokens tokens = CountTokens(
        layout, std::vector<int64_t>(static_cast<size_t>(drawn.samples), drawn.sample_tokens));
    const int64_t most = ServerBufferBytes(layer, layout, tokens, compute,
                                           is_mesh ? PoolRole::kMesh : PoolRole::kDedicated);
    double& share = is_mesh ? shares.mesh : shares.dedicated;
    share = std::max(
        share, static_cast<double>(bytes[static_cast<size_t>(rank)]) / static_cast<double>(most));
  }
  return shares;
}

TEST(ServerMemory, BoundsWhatPlansNeed) {
  Shares most;
  for (uint64_t seed = 1; seed <= 600; ++seed) {
    PoolRandom draw(seed);
    const PoolCase drawn = DrawCase(draw);
    LayerShape layer;  // without the kernels' scratch, as it has no statistics
    layer.num_heads = 4;
    layer.num_kv_heads = draw.OneIn(2) ? 1 : 4;
    layer.qk_size = layer.v_size = 32;
    layer.out_width = layer.num_heads * layer.v_size;
    const Shares shares = SharesOf(drawn, layer);
    // Halves of an odd number of rows.
    EXPECT_LE(shares.mesh, 1.01) << "seed " << seed;
    EXPECT_LE(shares.dedicated, 1.01) << "seed " << seed;
    if (drawn.layout.num_servers() < 4) continue;
    most.mesh = std::max(most.mesh, shares.mesh);
    most.dedicated = std::max(most.dedicated, shares.dedicated);
  }
  // And is nearly reached by some.
  EXPECT_GE(most.mesh, 0.9);
  EXPECT_GE(most.dedicated, 0.7);
}

// A pass of an evaluation has one document a replica, no longer than a sample, or none: batches
// that are less even than those of training, and take forward buffers alone.
TEST(ServerMemory, BoundsWhatEvaluationsNeed) {
  Shares most;
  for (uint64_t seed = 1; seed <= 600; ++seed) {
    PoolRandom draw(seed);
    PoolCase drawn = DrawCase(draw);
    const int64_t mix = draw(0, 3);  // one long document, or some, or any, or long ones alone
    for (size_t r = 0; r < drawn.cu_seqlens.size(); ++r) {
      for (auto& cu : drawn.cu_seqlens[r]) {
        const bool is_long = mix == 0 ? r == 0 : mix == 3 || draw.OneIn(2);
        const int64_t length = is_long && mix != 2 ? drawn.sample_tokens
                               : draw.OneIn(5)     ? 0
                               : mix == 2          ? draw(1, drawn.sample_tokens)
                                                   : draw(1, 1 + drawn.sample_tokens / 64);
        cu = length == 0 ? std::vector<int64_t>{0} : std::vector<int64_t>{0, length};
      }
    }
    LayerShape layer;
    layer.num_heads = 4;
    layer.num_kv_heads = draw.OneIn(2) ? 1 : 4;
    layer.qk_size = layer.v_size = 32;
    layer.out_width = layer.num_heads * layer.v_size;
    const Shares shares = SharesOf(drawn, layer, /*trains=*/false);
    EXPECT_LE(shares.mesh, 1) << "seed " << seed;
    EXPECT_LE(shares.dedicated, 1) << "seed " << seed;
    most.mesh = std::max(most.mesh, shares.mesh);
    most.dedicated = std::max(most.dedicated, shares.dedicated);
  }
  EXPECT_GE(most.mesh, 0.4);
  EXPECT_GE(most.dedicated, 0.3);
}

// With 64 replicas, one document that nearly all the work is in would go to all of them. The bound
// takes such batches for none; those with an eighth of the work of whole samples keep it.
TEST(ServerMemory, OfManyServersIsNotThatOfAllOfThem) {
  LayerShape layer;
  layer.num_heads = layer.num_kv_heads = 4;
  layer.qk_size = layer.v_size = 32;
  layer.out_width = layer.num_heads * layer.v_size;
  const auto bytes = [&](int replicas) {
    RankLayout layout;
    layout.mesh = {1, replicas, 1, 1};
    return ServerBufferBytes(layer, layout, CountTokens(layout, {4096}), ComputeShape(),
                             PoolRole::kMesh);
  };
  EXPECT_LT(bytes(2), bytes(4));
  EXPECT_LT(bytes(4), bytes(8));
  EXPECT_EQ(bytes(8), bytes(64));
}

}  // namespace
}  // namespace evenkeel
