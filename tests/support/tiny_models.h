// Small models of every kind, and packed batches for them, for tests.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "models/model.h"
#include "models/optimizer.h"
#include "runtime/base/philox.h"

namespace evenkeel::testing_support {

// A context with its own pool and arena.
struct TestRuntime {
  explicit TestRuntime(DType dtype = DType::kF64, int threads = 1)
      : pool(threads),
        arena(*Arena::Create(int64_t{1} << 36, tracker)),
        context{pool, arena, dtype} {}

  MemoryTracker tracker;
  ThreadPool pool;
  Arena arena;
  OpContext context;
};

struct NamedModel {
  std::string name;
  ModelConfig config;
};

inline ModelConfig TinyConfig(std::vector<LayerKind> pattern) {
  ModelConfig config;
  config.layer_pattern = std::move(pattern);
  config.vocab_size = 23;
  config.hidden_size = 16;
  config.intermediate_size = 20;
  config.num_layers = 3;
  config.num_heads = 4;
  config.init_std = 0.2;
  return config;
}

// One of every family and option that changes the mathematics.
inline std::vector<NamedModel> AllTinyModels() {
  std::vector<NamedModel> models;
  ModelConfig llama = TinyConfig({LayerKind::kSoftmax});
  llama.num_kv_heads = 2;
  models.push_back({"llama", llama});
  ModelConfig qwen2 = llama;
  qwen2.qkv_bias = true;
  qwen2.tie_embeddings = true;
  models.push_back({"qwen2", qwen2});
  ModelConfig qwen3 = llama;
  qwen3.qk_norm = true;
  qwen3.head_dim = 6;
  qwen3.rope.scaling = RopeScalingKind::kYarn;
  qwen3.rope.factor = 4;
  qwen3.rope.original_max_position_embeddings = 8;
  models.push_back({"qwen3", qwen3});
  ModelConfig tnl = TinyConfig({LayerKind::kLightning});
  tnl.tie_embeddings = true;
  tnl.scale_embedding = true;
  tnl.final_norm_gain = false;
  models.push_back({"tnl", tnl});
  ModelConfig hybrid =
      TinyConfig({LayerKind::kLightning, LayerKind::kLightning, LayerKind::kSoftmax});
  models.push_back({"hybrid", hybrid});
  for (const auto variant : {TransNormerVariant::kT1, TransNormerVariant::kT2}) {
    ModelConfig v1 = TinyConfig({LayerKind::kDiagAttention, LayerKind::kNormAttention});
    v1.variant = variant;
    v1.block_size = 4;
    v1.embedding_norm = true;
    v1.final_norm_gain = false;
    v1.tie_embeddings = true;
    models.push_back(
        {variant == TransNormerVariant::kT1 ? "transnormer_t1" : "transnormer_t2", v1});
  }
  return models;
}

// Documents of the given lengths with random tokens; the last token of each has no target.
inline PackedBatch RandomBatch(const std::vector<int64_t>& lengths, int64_t vocab, uint64_t seed) {
  PackedBatch batch;
  uint64_t drawn = 0;
  const Philox random(seed, 77);
  for (const int64_t length : lengths) {
    std::vector<int32_t> tokens, targets;
    for (int64_t i = 0; i < length; ++i) {
      tokens.push_back(static_cast<int32_t>(random.Bits(drawn++) % static_cast<uint64_t>(vocab)));
    }
    for (int64_t i = 0; i < length; ++i) {
      targets.push_back(i + 1 < length ? tokens[static_cast<size_t>(i) + 1] : kIgnoredTarget);
    }
    batch.AppendPiece(tokens, targets);
  }
  return batch;
}

// A model with its initial weights. Biases and gains, which start at 0 and 1, are shaken so that no
// gradient is zero by symmetry.
inline std::unique_ptr<Model> MakeModel(TestRuntime& runtime, const ModelConfig& config,
                                        uint64_t seed = 1) {
  auto created = Model::Create(runtime.context, config, /*with_gradients=*/true, runtime.tracker);
  EXPECT_TRUE(created.ok()) << created.status();
  auto model = std::make_unique<Model>(*std::move(created));
  model->layout().Initialize(runtime.pool, seed, model->weights().view());
  DispatchFloat(runtime.context.dtype, [&]<typename T>() {
    T* weights = model->weights().view().template as<T>();
    for (const ParameterSpec& spec : model->layout().specs()) {
      if (spec.init != InitKind::kZero && spec.init != InitKind::kOne) continue;
      const Philox random(seed, static_cast<uint64_t>(spec.offset) + 5);
      for (int64_t i = 0; i < spec.size(); ++i) {
        weights[spec.offset + i] += static_cast<T>(0.3 * random.Normal(static_cast<uint64_t>(i)));
      }
    }
  });
  return model;
}

// Model::ForwardBackward on the CPU; returns the sum of the losses.
inline double ForwardBackward(TestRuntime& runtime, Model& model, const PackedBatch& batch,
                              double scale, Recompute recompute = Recompute::kNone) {
  double loss_sum = 0;
  model.ForwardBackward(runtime.context, batch, scale, recompute, /*is_last=*/true,
                        TensorView(&loss_sum, DType::kF64, {1}));
  return loss_sum;
}

// Optimizer::Update on the CPU; returns the norm of the gradient.
inline double Update(TestRuntime& runtime, Optimizer& optimizer, const AdamWStepParams& step,
                     Model& model) {
  double squares = 0;
  const TensorView sum(&squares, DType::kF64, {1});
  model.FinishGradients(runtime.context, sum);
  optimizer.Update(runtime.context, step, model, sum);
  return std::sqrt(squares);
}

}  // namespace evenkeel::testing_support
