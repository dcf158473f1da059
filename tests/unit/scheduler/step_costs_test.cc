#include "scheduler/step_costs.h"

#include <gtest/gtest.h>

#include "models/model_shape.h"

namespace evenkeel {
namespace {

ModelConfig Llama3_8B() {
  ModelConfig config;
  config.vocab_size = 128256;
  config.hidden_size = 4096;
  config.intermediate_size = 14336;
  config.num_layers = 32;
  config.num_heads = 32;
  config.num_kv_heads = 8;
  return config;
}

ClusterShape Cluster() {
  ClusterShape cluster;
  cluster.gpus_per_node = 8;
  cluster.nvlink = {400e9, 1e-6};
  cluster.network = {50e9, 1e-5};
  cluster.matmul_flops = 500e12;
  cluster.attention_forward_flops = 300e12;
  cluster.attention_backward_flops = 250e12;
  cluster.copy_bytes_per_second = 2e12;
  return cluster;
}

constexpr double kQkv = 4096. * 6144, kRest = 4096. * 4096 + 3 * 4096. * 14336;

TEST(StepCosts, ProductsOfLlama3_8B) {
  CostOptions options;
  options.recompute = RecomputePlan::kNone;
  const StepCosts costs = *PriceStep(ShapeOf(Llama3_8B()), Cluster(), options);
  ASSERT_EQ(costs.stages.size(), 1);
  ASSERT_EQ(costs.stages[0].layers.size(), 32);
  const SoftmaxLayerCost& layer = costs.stages[0].layers[7];
  EXPECT_DOUBLE_EQ(layer.pre.forward, 2 * kQkv / 500e12);
  EXPECT_DOUBLE_EQ(layer.pre.backward, 4 * kQkv / 500e12);
  EXPECT_DOUBLE_EQ(layer.post.forward, 2 * kRest / 500e12);
  EXPECT_EQ(costs.stages[0].tail.forward, 0);
  EXPECT_DOUBLE_EQ(costs.stages[0].head.forward, 2 * 4096. * 128256 / 500e12);
  // All of it is what the honest formula counts.
  double seconds = costs.stages[0].head.forward + costs.stages[0].head.backward;
  for (const SoftmaxLayerCost& each : costs.stages[0].layers) {
    seconds += each.pre.forward + each.pre.backward + each.post.forward + each.post.backward;
  }
  EXPECT_NEAR(seconds * 500e12, costs.flops_per_token, 1e-6 * costs.flops_per_token);
  EXPECT_EQ(costs.token_bytes.q, 8192);
  EXPECT_EQ(costs.token_bytes.kv, 2 * 2 * 1024);
  EXPECT_EQ(costs.token_bytes.kv_gradient, 4 * 2 * 1024);
  EXPECT_EQ(costs.token_bytes.lse, 128);
  // 4 D H FLOPs a pair forward, 10 D H backward.
  EXPECT_DOUBLE_EQ(costs.forward.Seconds(128, 128), 4 * 4096. / 300e12 * 8256);
  EXPECT_DOUBLE_EQ(costs.backward.Seconds(128, 128), 10 * 4096. / 250e12 * 8256);
}

TEST(StepCosts, TensorParallelismDividesAndCommunicates) {
  CostOptions options;
  options.tp = 8;
  options.recompute = RecomputePlan::kNone;
  const ModelShape shape = ShapeOf(Llama3_8B());
  const SoftmaxLayerCost layer = PriceStep(shape, Cluster(), options)->stages[0].layers[0];
  // Each gather or scatter moves 7 of 8 ranks' parts of a token.
  const double gather = 2 * 4096. * 7 / 8 / 400e9;
  EXPECT_DOUBLE_EQ(layer.pre.forward, 2 * kQkv / 8 / 500e12 + gather);
  EXPECT_DOUBLE_EQ(layer.post.forward, 2 * kRest / 8 / 500e12 + 3 * gather);
  EXPECT_DOUBLE_EQ(layer.post.backward, 4 * kRest / 8 / 500e12 + 4 * gather);
  options.recompute = RecomputePlan::kMlp;
  const SoftmaxLayerCost again = PriceStep(shape, Cluster(), options)->stages[0].layers[0];
  EXPECT_DOUBLE_EQ(again.post.backward - layer.post.backward,
                   2 * 3 * 4096. * 14336 / 8 / 500e12 + gather);
  options.tp = 16;  // beyond the key/value heads and the node
  const StepCosts wide = *PriceStep(shape, Cluster(), options);
  EXPECT_EQ(wide.token_bytes.kv, 2 * 2 * 128);
  EXPECT_GT(wide.stages[0].layers[0].pre.forward, 2 * 4096. * 15 / 8 / 50e9 / 2);
}

TEST(StepCosts, LinearLayersBetweenSoftmaxLayers) {
  ModelConfig config = Llama3_8B();
  config.num_kv_heads = 0;
  config.layer_pattern = {LayerKind::kLightning, LayerKind::kSoftmax, LayerKind::kLightning,
                          LayerKind::kLightning};
  CostOptions options;
  options.stage_begin = {0, 16, 32};
  const StepCosts costs = *PriceStep(ShapeOf(config), Cluster(), options);
  ASSERT_EQ(costs.stages.size(), 2);
  EXPECT_EQ(costs.stages[0].layers.size(), 4);
  EXPECT_GT(costs.stages[0].layers[0].others.forward, 2 * kQkv / 500e12);
  EXPECT_NEAR(costs.stages[0].layers[1].others.forward,
              3 * costs.stages[0].layers[0].others.forward, 1e-7);
  // Two linear layers after the last softmax layer, and a head on the last stage alone.
  EXPECT_GT(costs.stages[0].tail.forward, 0);
  EXPECT_EQ(costs.stages[1].tail.forward, costs.stages[0].tail.forward);
  EXPECT_EQ(costs.stages[0].head.forward, 0);
  EXPECT_DOUBLE_EQ(costs.stages[1].head.forward, 2 * 4096. * 128256 / 500e12);
}

// Whatever the stages, all layers are in one of them, embedding and head in the first and last.
TEST(StepCosts, StagesAsTheyAreCut) {
  ModelConfig config = Llama3_8B();
  config.num_kv_heads = 0;
  config.layer_pattern = {LayerKind::kLightning, LayerKind::kSoftmax, LayerKind::kLightning,
                          LayerKind::kLightning};
  ClusterShape cluster = Cluster();
  cluster.measured = {.pre_forward = 1,
                      .post_forward = 10,
                      .pre_backward = 100,
                      .post_backward = 1000,
                      .embedding_forward = 0.5,
                      .head_backward = 0.25};
  CostOptions options;
  options.stage_begin = {0, 1, 7, 9, 32};
  const StepCosts costs = *PriceStep(ShapeOf(config), cluster, options);
  ASSERT_EQ(costs.stages.size(), 4);
  const std::vector<size_t> softmax_layers = {0, 2, 0, 6};
  const std::vector<double> tails = {1, 1, 2, 2};
  TokenSeconds sum;
  for (size_t s = 0; s < 4; ++s) {
    const StageCost& stage = costs.stages[s];
    EXPECT_EQ(stage.layers.size(), softmax_layers[s]) << s;
    EXPECT_DOUBLE_EQ(stage.tail.forward, tails[s] * 11) << s;
    EXPECT_EQ(stage.embedding.forward, s == 0 ? 0.5 : 0) << s;
    EXPECT_EQ(stage.head.backward, s == 3 ? 0.25 : 0) << s;
    sum += stage.tail;
    for (const SoftmaxLayerCost& layer : stage.layers) {
      sum += layer.pre;
      sum += layer.post;
      sum += layer.others;
    }
  }
  EXPECT_DOUBLE_EQ(sum.forward, 32 * 11);
  EXPECT_DOUBLE_EQ(sum.backward, 32 * 1100);
}

TEST(StepCosts, PartlyFilledTilesCostWholeOnes) {
  ClusterShape cluster = Cluster();
  cluster.attention_tile = 128;
  const StepCosts costs = *PriceStep(ShapeOf(Llama3_8B()), cluster, {});
  EXPECT_DOUBLE_EQ(costs.forward.Seconds(32, 4096), 4 * costs.forward.cost.Seconds(32, 4096));
  EXPECT_DOUBLE_EQ(costs.forward.Seconds(256, 4096), costs.forward.cost.Seconds(256, 4096));
  EXPECT_EQ(costs.forward.Seconds(0, 4096), 0);
}

TEST(StepCosts, MeasuredRatesWin) {
  ClusterShape cluster = Cluster();
  cluster.measured = {.pre_forward = 1,
                      .post_forward = 2,
                      .pre_backward = 3,
                      .post_backward = 4,
                      .head_forward = 5,
                      .head_backward = 6,
                      .attention_forward = 7,
                      .attention_backward = 8,
                      .step = 9};
  const StepCosts costs = *PriceStep(ShapeOf(Llama3_8B()), cluster, {});
  EXPECT_EQ(costs.stages[0].layers[3].pre.backward, 3);
  EXPECT_EQ(costs.stages[0].layers[3].post.forward, 2);
  EXPECT_EQ(costs.stages[0].head.backward, 6);
  EXPECT_EQ(costs.forward.cost.Seconds(1, 1), 7);
  EXPECT_EQ(costs.backward.cost.Seconds(1, 1), 8);
  EXPECT_EQ(costs.step_seconds, 9);
}

TEST(StepCosts, Refusals) {
  const ModelShape shape = ShapeOf(Llama3_8B());
  EXPECT_FALSE(PriceStep(shape, Cluster(), {.stage_begin = {}, .tp = 3}).ok());
  ModelConfig config = Llama3_8B();
  config.layer_pattern = {LayerKind::kLightning};
  EXPECT_FALSE(PriceStep(ShapeOf(config), Cluster(), {}).ok());
}

TEST(StepCosts, Links) {
  const ClusterShape cluster = Cluster();
  // With tp 2, four ranks of the pool are in a node.
  EXPECT_EQ(&LinkBetween(cluster, 2, 0, 3), &cluster.nvlink);
  EXPECT_EQ(&LinkBetween(cluster, 2, 3, 4), &cluster.network);
  EXPECT_EQ(&LinkBetween(cluster, 8, 0, 1), &cluster.network);
  EXPECT_EQ(GatherSeconds(cluster, 8, 1, 1e9), 0);
  EXPECT_DOUBLE_EQ(GatherSeconds(cluster, 8, 4, 1e9), 0.75 * 1e9 / 50e9 + 2 * 1e-5);
}

}  // namespace
}  // namespace evenkeel
