// The plan against what a training step really allocates.
#include "scheduler/memory_plan.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "models/model_shape.h"
#include "models/optimizer.h"
#include "models/parameters.h"
#include "tests/support/tiny_models.h"

namespace evenkeel {
namespace {

using testing_support::AllTinyModels;
using testing_support::ForwardBackward;
using testing_support::MakeModel;
using testing_support::NamedModel;
using testing_support::RandomBatch;
using testing_support::TestRuntime;
using testing_support::Update;

struct RecomputeCase {
  const char* name;
  Recompute recompute;
  RecomputePlan plan;
};

constexpr RecomputeCase kRecomputeCases[] = {
    {"none", Recompute::kNone, RecomputePlan::kNone},
    {"mlp", Recompute::kMlp, RecomputePlan::kMlp},
    {"all_but_attention", Recompute::kAllButAttention, RecomputePlan::kAllButAttention},
    {"layer", Recompute::kLayer, RecomputePlan::kLayer},
};

// Trains one step and compares. The plan leaves out the scratch of the attention kernels' threads,
// so it may be that much too low, and no more than what rounding to whole cache lines costs too
// high.
void CheckPlan(const NamedModel& named, const RecomputeCase& mode,
               const std::vector<int64_t>& lengths, DType dtype, int threads) {
  TestRuntime runtime(dtype, threads);
  const auto model = MakeModel(runtime, named.config);
  auto optimizer = Optimizer::Create(runtime.context, *model, AdamWConfig(), runtime.tracker);
  ASSERT_TRUE(optimizer.ok()) << optimizer.status();
  const PackedBatch batch = RandomBatch(lengths, named.config.vocab_size, 1);
  ForwardBackward(runtime, *model, batch, 1, mode.recompute);
  Update(runtime, *optimizer, AdamWStepParams{1e-3, 1, 0}, *model);

  const MemoryPlan plan =
      PlanTrainingMemory(ShapeOf(named.config), batch.num_tokens(),
                         ComputeShapeOf(Device::kCpu, dtype, named.config.vocab_size), mode.plan);
  const MemoryTracker& tracker = runtime.tracker;
  EXPECT_EQ(plan.weights, tracker.peak(MemoryPurpose::kWeights));
  EXPECT_EQ(plan.gradients, tracker.peak(MemoryPurpose::kGradients));
  EXPECT_EQ(plan.optimizer, tracker.peak(MemoryPurpose::kOptimizer));
  const int64_t scratch = threads * SizeOf(dtype) * 45 * 1024;
  EXPECT_LE(plan.total(), tracker.peak_total() + 4096);
  EXPECT_GE(plan.total(), tracker.peak_total() - scratch)
      << named.name << ", recompute " << mode.name << ", " << batch.num_tokens() << " tokens";
}

TEST(MemoryPlan, TellsWhatTinyModelsAllocate) {
  for (const NamedModel& named : AllTinyModels()) {
    for (const RecomputeCase& mode : kRecomputeCases) {
      for (const std::vector<int64_t>& lengths :
           {std::vector<int64_t>{1}, {33}, {200, 1, 99}, {700}, {1500, 533, 100}}) {
        CheckPlan(named, mode, lengths, DType::kF64, 1);
      }
      // So many tokens that a column more or less is more than the scratch.
      CheckPlan(named, mode, std::vector<int64_t>(100, 100), DType::kF64, 1);
    }
  }
}

NamedModel Wide(std::string name, std::vector<LayerKind> pattern) {
  ModelConfig config;
  config.layer_pattern = std::move(pattern);
  config.vocab_size = 2000;
  config.hidden_size = 128;
  config.intermediate_size = 352;
  config.num_layers = 4;
  config.num_heads = 2;
  return {std::move(name), config};
}

TEST(MemoryPlan, TellsWhatWiderModelsAllocate) {
  std::vector<NamedModel> models;
  models.push_back(Wide("wide llama", {LayerKind::kSoftmax}));
  models.push_back(Wide("wide qwen3", {LayerKind::kSoftmax}));
  models.back().config.qk_norm = true;
  models.back().config.num_kv_heads = 1;
  models.push_back(Wide("wide tnl", {LayerKind::kLightning}));
  models.push_back(
      Wide("wide hybrid", {LayerKind::kLightning, LayerKind::kLightning, LayerKind::kSoftmax}));
  models.push_back(Wide("wide v1", {LayerKind::kDiagAttention, LayerKind::kNormAttention}));
  models.back().config.embedding_norm = true;
  models.push_back(Wide("no lrpe", {LayerKind::kLightning}));
  models.back().config.lrpe_layers = {};
  // Every layer widens q and k.
  models.push_back(Wide("all lrpe", {LayerKind::kLightning}));
  models.back().config.lrpe_layers = {0, 1, 2, 3};
  // The head is the peak.
  models.push_back(Wide("large head", {LayerKind::kSoftmax}));
  models.back().config.vocab_size = 10000;
  models.back().config.num_layers = 1;
  for (const NamedModel& named : models) {
    for (const RecomputeCase& mode : kRecomputeCases) {
      CheckPlan(named, mode, {400, 200, 100}, DType::kF32, 1);
    }
    CheckPlan(named, kRecomputeCases[1], {1500}, DType::kF32, 2);
    CheckPlan(named, kRecomputeCases[0], {100}, DType::kF64, 2);
  }
}

// On a GPU: bf16 with float32 weights (tests/gpu holds the kernels; here is no GPU to allocate on).
MemoryPlan PlanForGpu(const ModelConfig& config, int64_t tokens, RecomputePlan recompute) {
  return PlanTrainingMemory(ShapeOf(config), tokens,
                            ComputeShapeOf(Device::kCuda, DType::kBF16, config.vocab_size),
                            recompute);
}

TEST(MemoryPlan, CountsMasterWeightsAndTheirCopyOnAGpu) {
  for (const NamedModel& named : AllTinyModels()) {
    const int64_t parameters = ShapeOf(named.config).num_parameters;
    for (const RecomputeCase& mode : kRecomputeCases) {
      const MemoryPlan plan = PlanForGpu(named.config, 1000, mode.plan);
      EXPECT_EQ(plan.weights, 6 * parameters) << named.name;
      EXPECT_EQ(plan.gradients, 4 * parameters) << named.name;
      EXPECT_EQ(plan.optimizer, 8 * parameters) << named.name;
    }
  }
}

TEST(MemoryPlan, HalvesActivationsOnAGpu) {
  for (const NamedModel& named : AllTinyModels()) {
    for (const RecomputeCase& mode : kRecomputeCases) {
      const int64_t single =
          PlanTrainingMemory(ShapeOf(named.config), 1000,
                             ComputeShapeOf(Device::kCpu, DType::kF32, named.config.vocab_size),
                             mode.plan)
              .activations;
      // What stays float32: the tables of angles, once, and softmax's statistics, one a layer,
      // token and head.
      const ModelShape shape = ShapeOf(named.config);
      int64_t wide = shape.rotary_size;
      if (mode.plan != RecomputePlan::kLayer) {
        for (const LayerShape& layer : shape.layers) wide += layer.has_lse ? layer.num_heads : 0;
      }
      wide *= 4 * 1000;
      // The two norms of a layer, which the CPU computes again.
      const int64_t norms =
          mode.plan == RecomputePlan::kNone
              ? 2 * 2 * 1000 * shape.hidden_size * static_cast<int64_t>(shape.layers.size())
              : 0;
      EXPECT_EQ(PlanForGpu(named.config, 1000, mode.plan).activations,
                wide + (single - wide) / 2 + norms)
          << named.name << ", recompute " << mode.name;
    }
  }
}

TEST(MemoryPlan, GrowsWithTokensAndShrinksWithRecomputationOnAGpu) {
  for (const NamedModel& named :
       {Wide("llama", {LayerKind::kSoftmax}), Wide("tnl", {LayerKind::kLightning})}) {
    MemoryPlan before[3];
    for (int64_t tokens = 0; tokens <= 200000; tokens += 1 + tokens / 2) {
      for (size_t i = 0; i < 3; ++i) {
        const MemoryPlan plan = PlanForGpu(named.config, tokens, kRecomputeCases[i].plan);
        EXPECT_GE(plan.total(), before[i].total()) << named.name << ", " << tokens << " tokens";
        EXPECT_GE(plan.activations, before[i].activations);
        EXPECT_GE(plan.workspace, before[i].workspace);
        before[i] = plan;
      }
      EXPECT_GE(before[0].activations, before[1].activations);
      EXPECT_GE(before[1].activations, before[2].activations);
    }
    EXPECT_GT(before[0].total(), before[1].total()) << named.name;
    EXPECT_GT(before[1].total(), before[2].total()) << named.name;
  }
}

// A bias of the gated unit's product is summed from the gradient in bf16, so that both are there.
TEST(MemoryPlan, CountsTheGradientThatABiasWantsBesideFp8) {
  int64_t layers_with_bias = 0;
  for (const NamedModel& named : AllTinyModels()) {
    const ParameterLayout layout(named.config);
    std::vector<float> flat(static_cast<size_t>(layout.num_elements()));
    const ModelShape shape = ShapeOf(named.config);
    for (int64_t layer = 0; layer < layout.num_layers(); ++layer) {
      const TensorView unit(flat.data(), DType::kF32, {layout.num_elements()});
      const bool has_bias = !layout.Block(layer, unit, unit).mlp_pair_bias.empty();
      EXPECT_EQ(shape.layers[static_cast<size_t>(layer)].has_mlp_bias, has_bias) << named.name;
      layers_with_bias += has_bias ? 1 : 0;
    }
  }
  EXPECT_GT(layers_with_bias, 0);

  // So wide that the feed-forward is the peak.
  ModelConfig config = Wide("v1", {LayerKind::kDiagAttention, LayerKind::kNormAttention}).config;
  config.intermediate_size = 4096;
  const ModelShape shape = ShapeOf(config);
  ModelShape without = shape;
  for (LayerShape& layer : without.layers) layer.has_mlp_bias = false;
  constexpr int64_t kTokens = 1000;
  for (const RecomputeCase& mode : kRecomputeCases) {
    ComputeShape compute = ComputeShapeOf(Device::kCuda, DType::kBF16, config.vocab_size);
    const auto difference = [&] {
      return PlanTrainingMemory(shape, kTokens, compute, mode.plan).workspace -
             PlanTrainingMemory(without, kTokens, compute, mode.plan).workspace;
    };
    EXPECT_EQ(difference(), 0) << mode.name;
    compute.fp8 = true;
    EXPECT_EQ(difference(), kTokens * 2 * 4096 * 2) << mode.name;
  }
}

}  // namespace
}  // namespace evenkeel
