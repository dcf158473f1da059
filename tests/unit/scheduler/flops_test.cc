#include "scheduler/flops.h"

#include <gtest/gtest.h>

#include <vector>

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

// One layer of the given kind with round sizes: 2 heads of 8, width 16.
ModelConfig OneLayer(LayerKind kind) {
  ModelConfig config;
  config.layer_pattern = {kind};
  config.vocab_size = 10;
  config.hidden_size = 16;
  config.intermediate_size = 20;
  config.num_layers = 1;
  config.num_heads = 2;
  return config;
}

TEST(Flops, Llama3_8B) {
  const ModelShape shape = ShapeOf(Llama3_8B());
  EXPECT_EQ(shape.num_parameters, 8030261248);
  // Without the embedding, 128256 x 4096, and 65 norms of 4096.
  EXPECT_EQ(shape.num_matmul_parameters, 7504658432);
  const StepFlops flops = TrainingFlops(shape, {8192});
  EXPECT_EQ(flops.matmul, 6.0 * 7504658432 * 8192);
  // 32 layers, 32 heads, 8192 x 8193 / 2 pairs, 6 (128 + 128) each.
  EXPECT_EQ(flops.softmax_attention, 32.0 * 32 * 33558528 * 1536);
  EXPECT_EQ(flops.linear_attention, 0);
  EXPECT_EQ(flops.total(), flops.matmul + flops.softmax_attention);
}

TEST(Flops, PackedDocumentsAreSummedOneByOne) {
  const ModelShape shape = ShapeOf(OneLayer(LayerKind::kSoftmax));
  const std::vector<int64_t> lengths = {1, 7, 100, 0, 3};
  const StepFlops packed = TrainingFlops(shape, lengths);
  StepFlops sum;
  for (const int64_t length : lengths) {
    const StepFlops alone = TrainingFlops(shape, {length});
    sum.matmul += alone.matmul;
    sum.softmax_attention += alone.softmax_attention;
  }
  EXPECT_EQ(packed.matmul, sum.matmul);
  EXPECT_EQ(packed.softmax_attention, sum.softmax_attention);
  // 1 + 28 + 5050 + 0 + 6 pairs, 2 heads, 6 (8 + 8) each; far fewer than one document's 111.
  EXPECT_EQ(packed.softmax_attention, 5085.0 * 2 * 96);
  EXPECT_LT(packed.softmax_attention, TrainingFlops(shape, {111}).softmax_attention);
}

TEST(Flops, BlocksSeeOnlyThemselves) {
  ModelConfig config = OneLayer(LayerKind::kDiagAttention);
  config.block_size = 4;
  // 10 tokens: blocks of 4, 4 and 2 have 10 + 10 + 3 pairs; 3 tokens: 6 pairs.
  EXPECT_EQ(TrainingFlops(ShapeOf(config), {10, 3}).softmax_attention, 29.0 * 2 * 96);
  EXPECT_EQ(TrainingFlops(ShapeOf(config), {4}).softmax_attention, 10.0 * 2 * 96);
}

TEST(Flops, LinearLayersGrowWithTokensAlone) {
  ModelConfig config = OneLayer(LayerKind::kLightning);
  config.lrpe_layers = {};
  // 12 Dqk Dv H a token.
  EXPECT_EQ(TrainingFlops(ShapeOf(config), {100}).linear_attention, 12.0 * 8 * 8 * 2 * 100);
  EXPECT_EQ(TrainingFlops(ShapeOf(config), {60, 40}).linear_attention, 12.0 * 8 * 8 * 2 * 100);
  EXPECT_EQ(TrainingFlops(ShapeOf(config), {100}).softmax_attention, 0);
  // LRPE doubles q and k.
  config.lrpe_layers = {0};
  EXPECT_EQ(TrainingFlops(ShapeOf(config), {100}).linear_attention, 12.0 * 16 * 8 * 2 * 100);
  // NormAttention is linear too.
  const ModelShape v1 = ShapeOf(OneLayer(LayerKind::kNormAttention));
  EXPECT_EQ(TrainingFlops(v1, {100}).linear_attention, 12.0 * 8 * 8 * 2 * 100);
}

TEST(Flops, CountsMatricesThatMultiply) {
  // q, k, v and output 4 x 16 x 16, feed-forward 3 x 16 x 20, head 10 x 16.
  EXPECT_EQ(ShapeOf(OneLayer(LayerKind::kSoftmax)).num_matmul_parameters, 1024 + 960 + 160);
  ModelConfig tied = OneLayer(LayerKind::kSoftmax);
  tied.tie_embeddings = true;
  EXPECT_EQ(ShapeOf(tied).num_matmul_parameters, 1024 + 960 + 160);
  EXPECT_EQ(ShapeOf(tied).num_parameters,
            ShapeOf(OneLayer(LayerKind::kSoftmax)).num_parameters - 160);
  ModelConfig biased = OneLayer(LayerKind::kSoftmax);
  biased.qkv_bias = biased.qk_norm = true;
  EXPECT_EQ(ShapeOf(biased).num_matmul_parameters, 1024 + 960 + 160);
  // A gate of 16 x 16 more; LRPE's angles multiply nothing.
  EXPECT_EQ(ShapeOf(OneLayer(LayerKind::kLightning)).num_matmul_parameters, 1280 + 960 + 160);
}

TEST(Flops, HybridAddsItsLayersUp) {
  ModelConfig config = OneLayer(LayerKind::kSoftmax);
  config.layer_pattern = {LayerKind::kLightning, LayerKind::kSoftmax};
  config.num_layers = 4;
  config.lrpe_layers = {};
  const StepFlops flops = TrainingFlops(ShapeOf(config), {50});
  EXPECT_EQ(flops.softmax_attention, 2 * 1275.0 * 2 * 96);
  EXPECT_EQ(flops.linear_attention, 2 * 12.0 * 8 * 8 * 2 * 50);
}

TEST(Flops, NothingCostsNothing) {
  EXPECT_EQ(TrainingFlops(ShapeOf(OneLayer(LayerKind::kSoftmax)), {}).total(), 0);
}

}  // namespace
}  // namespace evenkeel
