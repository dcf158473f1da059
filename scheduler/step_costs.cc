#include "scheduler/step_costs.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace evenkeel {
namespace {

// Of core attention, a (query, key) pair: products of size Dqk and Dv, twice those of the
// mathematics backward, and the scores again.
constexpr double kForwardFlops = 2, kBackwardFlops = 5;
// A linear or block-local layer's core counts as products.
constexpr double kLinearFlops = 4;

// Collectives of tensor parallelism a layer, as docs/parallelism.md lists them: each gathers or
// scatters the tokens' stream once.
struct Collectives {
  double forward = 0;
  double backward = 0;
};
constexpr Collectives kPreCollectives = {1, 2}, kPostCollectives = {3, 4};

bool IsPooled(const LayerShape& layer) {
  return !layer.is_linear && layer.block_size == 0;
}

// FLOPs of the core of a layer whose attention is not pooled, a token forward.
double LocalCoreFlops(const LayerShape& layer) {
  const double heads = static_cast<double>(layer.num_heads);
  const double qk = static_cast<double>(layer.qk_size), v = static_cast<double>(layer.v_size);
  if (layer.is_linear) return kLinearFlops * heads * qk * v;
  return 2 * heads * (qk + v) * static_cast<double>(layer.block_size + 1) / 2;
}

class Pricer {
 public:
  Pricer(const ModelShape& shape, const ClusterShape& cluster, const CostOptions& options)
      : cluster_(cluster), options_(options), hidden_(static_cast<double>(shape.hidden_size)) {
    const LinkRate& link = options.tp <= cluster.gpus_per_node ? cluster.nvlink : cluster.network;
    const double tp = options.tp;
    collective_ = cluster.tp_exposed * hidden_ * static_cast<double>(options.element_bytes) *
                  (tp - 1) / tp / link.bytes_per_second;
  }

  // A product with so many parameters, of a token.
  double Product(double parameters) const {
    return 2 * parameters / options_.tp / cluster_.matmul_flops;
  }
  TokenSeconds Piece(double parameters, double core_flops, const Collectives& collectives) const {
    const double forward = Product(parameters) + core_flops / options_.tp / cluster_.matmul_flops;
    return {forward + collectives.forward * collective_,
            2 * forward + collectives.backward * collective_};
  }

  SoftmaxLayerCost Layer(const LayerShape& layer) const {
    const MeasuredRates& rates = cluster_.measured;
    if (rates.are_given()) {
      return {
          {rates.pre_forward, rates.pre_backward}, {rates.post_forward, rates.post_backward}, {}};
    }
    const double projection = hidden_ * static_cast<double>(layer.projection_width);
    const double all = static_cast<double>(layer.num_matmul_parameters);
    const double mlp = 3 * hidden_ * static_cast<double>(layer.intermediate_size);
    const double core = IsPooled(layer) ? 0 : LocalCoreFlops(layer);
    SoftmaxLayerCost cost = {
        Piece(projection, 0, kPreCollectives), Piece(all - projection, core, kPostCollectives), {}};
    if (options_.recompute == RecomputePlan::kMlp) {
      cost.post.backward += Product(mlp) + collective_;
    } else if (ComputesProjectionAgain(options_.recompute)) {
      // All but core attention, which is StepCosts' forward_again.
      cost.pre.backward += cost.pre.forward;
      cost.post.backward += Product(all - projection) + 2 * collective_;
    }
    return cost;
  }

  TokenSeconds Embedding() const {
    return {cluster_.measured.embedding_forward, cluster_.measured.embedding_backward};
  }

  TokenSeconds Head(const ModelShape& shape) const {
    const MeasuredRates& rates = cluster_.measured;
    if (rates.are_given()) return {rates.head_forward, rates.head_backward};
    return Piece(hidden_ * static_cast<double>(shape.vocab_size), 0, {1, 2});
  }

 private:
  const ClusterShape& cluster_;
  const CostOptions& options_;
  double hidden_;
  double collective_ = 0;  // seconds a token of a gather or scatter of the stream
};

}  // namespace

double AttentionTime::Seconds(int64_t q_len, int64_t kv_len) const {
  if (q_len <= 0) return 0;
  const int64_t worked = (q_len + tile - 1) / tile * tile;
  return cost.Seconds(q_len, kv_len) * static_cast<double>(worked) / static_cast<double>(q_len);
}

absl::StatusOr<StepCosts> PriceStep(const ModelShape& shape, const ClusterShape& cluster,
                                    const CostOptions& options) {
  std::vector<int64_t> begin = options.stage_begin;
  if (begin.empty()) begin = {0, static_cast<int64_t>(shape.layers.size())};
  StepCosts costs;
  const LayerShape* pooled = nullptr;
  const Pricer pricer(shape, cluster, options);
  const size_t stages = begin.size() - 1;
  for (size_t stage = 0; stage < stages; ++stage) {
    StageCost cost;
    TokenSeconds before;  // of other layers since the last softmax one
    for (int64_t i = begin[stage]; i < begin[stage + 1]; ++i) {
      const LayerShape& layer = shape.layers[static_cast<size_t>(i)];
      SoftmaxLayerCost pieces = pricer.Layer(layer);
      if (!IsPooled(layer)) {
        before += pieces.pre;
        before += pieces.post;
        continue;
      }
      if (pooled != nullptr &&
          (pooled->num_heads != layer.num_heads || pooled->kv_width() != layer.kv_width() ||
           pooled->v_size != layer.v_size)) {
        return absl::InvalidArgumentError("softmax layers differ in heads or head sizes");
      }
      pooled = &layer;
      pieces.others = before;
      before = {};
      cost.layers.push_back(pieces);
    }
    cost.tail = before;
    if (stage == 0) cost.embedding = pricer.Embedding();
    if (stage + 1 == stages) cost.head = pricer.Head(shape);
    costs.stages.push_back(std::move(cost));
  }
  if (pooled == nullptr) {
    return absl::InvalidArgumentError(
        "the model has no layer of softmax attention: there is nothing to balance");
  }

  const auto tp = static_cast<int64_t>(options.tp);
  if (pooled->num_heads % tp != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("tp ", tp, " does not divide the ", pooled->num_heads, " heads"));
  }
  const int64_t heads = pooled->num_heads / tp;
  const int64_t kv_width = pooled->kv_width() / std::min(tp, pooled->num_kv_heads);
  costs.token_bytes.q = heads * pooled->qk_size * options.element_bytes;
  costs.token_bytes.kv = kv_width * options.element_bytes;
  costs.token_bytes.out = heads * pooled->v_size * options.element_bytes;
  costs.token_bytes.lse = heads * options.wide_bytes;
  costs.token_bytes.kv_gradient = kv_width * options.wide_bytes;
  costs.stage_bytes =
      static_cast<double>(shape.hidden_size * options.element_bytes) / static_cast<double>(tp);

  const double size = static_cast<double>(heads * (pooled->qk_size + pooled->v_size));
  const MeasuredRates& rates = cluster.measured;
  if (rates.are_given()) {
    costs.forward = {AttentionCost::PerPair(rates.attention_forward), cluster.attention_tile};
    costs.backward = {AttentionCost::PerPair(rates.attention_backward), cluster.attention_tile};
    costs.step_seconds = rates.step;
    costs.parameter_seconds = rates.parameter;
  } else {
    costs.forward = {AttentionCost::PerPair(kForwardFlops * size / cluster.attention_forward_flops),
                     cluster.attention_tile};
    costs.backward = {
        AttentionCost::PerPair(kBackwardFlops * size / cluster.attention_backward_flops),
        cluster.attention_tile};
  }
  costs.forward_again = options.recompute == RecomputePlan::kLayer;
  costs.piece_overhead = cluster.piece_overhead;
  costs.copy_seconds_per_byte = 1 / cluster.copy_bytes_per_second;
  costs.flops_per_token = 6 * static_cast<double>(shape.num_matmul_parameters);
  for (const LayerShape& layer : shape.layers) {
    if (IsPooled(layer)) {
      costs.flops_per_pair +=
          6 * static_cast<double>(layer.num_heads * (layer.qk_size + layer.v_size));
    } else {
      costs.flops_per_token += 3 * LocalCoreFlops(layer);
    }
  }
  return costs;
}

const LinkRate& LinkBetween(const ClusterShape& cluster, int tp, int a, int b) {
  const int in_node = std::max(1, cluster.gpus_per_node / tp);
  return a / in_node == b / in_node ? cluster.nvlink : cluster.network;
}

double GatherSeconds(const ClusterShape& cluster, int tp, int ranks, double bytes) {
  if (ranks <= 1) return 0;
  const LinkRate& link = LinkBetween(cluster, tp, 0, ranks - 1);
  return link.latency * std::bit_width(static_cast<unsigned>(ranks - 1)) +
         bytes * (ranks - 1) / ranks / link.bytes_per_second;
}

}  // namespace evenkeel
