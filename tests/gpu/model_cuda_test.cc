// Whole models on a GPU, in bf16, against their twins on the CPU in float64 with the same (rounded)
// weights: losses, every gradient, updates, decoding; and the same bits in every run.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "models/decode.h"
#include "models/optimizer.h"
#include "runtime/ops/gpu.h"
#include "runtime/ops/host_mirror.h"
#include "tests/support/tiny_models.h"

namespace evenkeel {
namespace {

using testing_support::MakeModel;
using testing_support::NamedModel;
using testing_support::RandomBatch;
using testing_support::TestRuntime;

// What rounding to bf16 at every step costs, by experience: three layers deep, a few times 2^-8.
// benchmarks/gpu.sh compares it with what it costs PyTorch.
constexpr double kLossBound = 3e-3;

// TransNormer v1 divides by the size of small sums and bends at zero (ReLU, elu); positions
// multiply the gradients of theta.
double GradientBound(const std::string& model, const std::string& parameter) {
  if (model.find("transnormer") == 0) return 0.15;
  return parameter.find("theta") != std::string::npos ? 0.15 : 0.04;
}

// A rank's GPU, with an arena on it.
struct GpuRuntime {
  GpuRuntime() : gpu(*OpenGpu(0)) {}

  std::shared_ptr<CudaOps> gpu;
  MemoryTracker tracker;
  ThreadPool pool{2};
  Arena arena = *Arena::CreateOnGpu(DeviceOf(*gpu), int64_t{8} << 30, tracker);
  OpContext context{pool, arena, DType::kBF16, gpu.get()};
};

// The families of testing_support::AllTinyModels in sizes that a GPU takes.
std::vector<NamedModel> GpuModels() {
  std::vector<NamedModel> models = testing_support::AllTinyModels();
  for (NamedModel& named : models) {
    named.config.vocab_size = 257;
    named.config.hidden_size = 64;
    named.config.intermediate_size = 96;
    named.config.init_std = 0.1;
    if (named.config.head_dim != 0) named.config.head_dim = 24;
    named.config.block_size = 64;
  }
  return models;
}

float RoundToBf16(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  word = (word + 0x7fff + ((word >> 16) & 1)) & 0xffff0000u;
  std::memcpy(&value, &word, 4);
  return value;
}

double RelativeDifference(const double* want, const double* got, int64_t n) {
  double error = 0, norm = 0;
  for (int64_t i = 0; i < n; ++i) {
    error += (want[i] - got[i]) * (want[i] - got[i]);
    norm += want[i] * want[i];
  }
  return norm > 0 ? std::sqrt(error / norm) : std::sqrt(error);
}

class ModelCudaTest : public testing::TestWithParam<NamedModel> {
 protected:
  void SetUp() override {
    if (NumGpus() == 0) GTEST_SKIP() << "no GPU";
    gpu_ = std::make_unique<GpuRuntime>();
    cpu_model_ = MakeModel(cpu_, GetParam().config);
    // Both start from weights that bf16 holds exactly.
    double* weights = cpu_model_->weights().view().as<double>();
    const int64_t n = cpu_model_->layout().num_elements();
    std::vector<float> rounded(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      rounded[static_cast<size_t>(i)] = RoundToBf16(static_cast<float>(weights[i]));
      weights[i] = static_cast<double>(rounded[static_cast<size_t>(i)]);
    }
    gpu_model_ = MakeGpuModel(rounded);
  }

  std::unique_ptr<Model> MakeGpuModel(std::vector<float>& weights, bool fp8 = false) {
    ModelSetup setup;
    setup.fp8 = fp8;
    auto created = Model::Create(gpu_->context, GetParam().config, setup, gpu_->tracker);
    EXPECT_TRUE(created.ok()) << created.status();
    auto model = std::make_unique<Model>(*std::move(created));
    EXPECT_TRUE(CopyFromHost(gpu_->context,
                             TensorView(weights.data(), DType::kF32, model->weights().shape()),
                             model->weights().view())
                    .ok());
    model->PublishWeights(gpu_->context);
    return model;
  }

  // Loss sum and gradients of one batch.
  std::pair<double, std::vector<double>> Gradients(Model& model, const PackedBatch& batch,
                                                   Recompute recompute) {
    const ArenaScope scope(gpu_->arena);
    const TensorView loss = gpu_->arena.AllocateZero(DType::kF64, {1}, MemoryPurpose::kWorkspace);
    model.ForwardBackward(gpu_->context, batch, kScale, recompute, /*is_last=*/true, loss);
    std::pair<double, std::vector<double>> result;
    result.second.resize(static_cast<size_t>(model.layout().num_elements()));
    EXPECT_TRUE(ReadDoubles(gpu_->context, loss, absl::MakeSpan(&result.first, 1)).ok());
    const absl::Status status =
        ReadDoubles(gpu_->context, model.gradients().view(), absl::MakeSpan(result.second));
    EXPECT_TRUE(status.ok()) << status;
    return result;
  }

  static constexpr double kScale = 0.01;
  TestRuntime cpu_{DType::kF64, 2};
  std::unique_ptr<GpuRuntime> gpu_;
  std::unique_ptr<Model> cpu_model_, gpu_model_;
};

// On the device as on the host, whatever a rank owns of the weights.
TEST_P(ModelCudaTest, InitialWeightsAreTheCpus) {
  const ParameterLayout& layout = gpu_model_->layout();
  const int64_t all = layout.num_elements();
  const std::vector<std::vector<RowRange>> lists = {
      {{0, 0, all}}, {{5, 0, all / 3}, {all / 2, all / 3, all / 2 - 7}}};
  for (const std::vector<RowRange>& owned : lists) {
    const int64_t n = owned.back().to + owned.back().count;
    std::vector<float> want(static_cast<size_t>(n));
    layout.Initialize(gpu_->pool, 7, owned, TensorView(want.data(), DType::kF32, {n}));
    auto weights =
        Tensor::Create(DType::kF32, {n}, MemoryPurpose::kWeights, gpu_->tracker, Device::kCuda);
    ASSERT_TRUE(weights.ok()) << weights.status();
    ASSERT_TRUE(layout.InitializeOnDevice(gpu_->context, 7, owned, weights->view()).ok());
    std::vector<double> got(static_cast<size_t>(n));
    ASSERT_TRUE(ReadDoubles(gpu_->context, weights->view(), absl::MakeSpan(got)).ok());
    for (int64_t i = 0; i < n; ++i) {
      const auto expected = static_cast<double>(want[static_cast<size_t>(i)]);
      ASSERT_NEAR(got[static_cast<size_t>(i)], expected, 2e-7 * std::abs(expected)) << i;
    }
  }
}

TEST_P(ModelCudaTest, LossAndGradientsAreTheCpus) {
  const PackedBatch batch = RandomBatch({1, 130, 64, 200, 7}, GetParam().config.vocab_size, 3);
  const double want =
      testing_support::ForwardBackward(cpu_, *cpu_model_, batch, kScale, Recompute::kNone);
  const auto [loss, gradients] = Gradients(*gpu_model_, batch, Recompute::kNone);
  EXPECT_NEAR(loss, want, kLossBound * want);
  const double* want_gradients = cpu_model_->gradients().view().as<double>();
  for (const ParameterSpec& spec : cpu_model_->layout().specs()) {
    const double difference = RelativeDifference(want_gradients + spec.offset,
                                                 gradients.data() + spec.offset, spec.size());
    EXPECT_LE(difference, GradientBound(GetParam().name, spec.name)) << spec.name;
  }
}

TEST_P(ModelCudaTest, TokenLossesAreTheCpus) {
  const PackedBatch batch = RandomBatch({300, 5, 77}, GetParam().config.vocab_size, 4);
  std::vector<double> want(batch.tokens.size()), got(batch.tokens.size());
  ASSERT_TRUE(cpu_model_->TokenLosses(cpu_.context, batch, absl::MakeSpan(want)).ok());
  ASSERT_TRUE(gpu_model_->TokenLosses(gpu_->context, batch, absl::MakeSpan(got)).ok());
  EXPECT_LE(RelativeDifference(want.data(), got.data(), batch.num_tokens()), kLossBound * 2);
}

TEST_P(ModelCudaTest, RecomputingAndRepeatingGiveTheSameBits) {
  const PackedBatch batch = RandomBatch({90, 1, 333}, GetParam().config.vocab_size, 5);
  std::vector<float> weights(static_cast<size_t>(cpu_model_->layout().num_elements()));
  for (size_t i = 0; i < weights.size(); ++i) {
    weights[i] = static_cast<float>(cpu_model_->weights().view().as<double>()[i]);
  }
  std::vector<std::pair<double, std::vector<double>>> results;
  for (const Recompute recompute :
       {Recompute::kNone, Recompute::kNone, Recompute::kMlp, Recompute::kLayer}) {
    const auto model = MakeGpuModel(weights);
    results.push_back(Gradients(*model, batch, recompute));
  }
  for (const auto& result : results) EXPECT_TRUE(result == results[0]);
}

// A step of E4M3 is 2^5 times one of bf16, of E5M2 2^6 times, so errors are so many times bf16's.
TEST_P(ModelCudaTest, Fp8IsNearTheCpu) {
  if (GetParam().config.head_size() % 16 != 0) GTEST_SKIP() << "FP8 takes other heads";
  const PackedBatch batch = RandomBatch({1, 130, 64, 200, 7}, GetParam().config.vocab_size, 3);
  const double want =
      testing_support::ForwardBackward(cpu_, *cpu_model_, batch, kScale, Recompute::kNone);
  std::vector<float> weights(static_cast<size_t>(cpu_model_->layout().num_elements()));
  for (size_t i = 0; i < weights.size(); ++i) {
    weights[i] = static_cast<float>(cpu_model_->weights().view().as<double>()[i]);
  }
  std::vector<std::pair<double, std::vector<double>>> results;
  // The last time with scales of a step before, which is the same batch.
  for (const auto& [recompute, passes] : {std::pair(Recompute::kNone, 1),
                                          {Recompute::kMlp, 1},
                                          {Recompute::kAllButAttention, 1},
                                          {Recompute::kLayer, 1},
                                          {Recompute::kNone, 2}}) {
    const auto model = MakeGpuModel(weights, /*fp8=*/true);
    Fp8Scales& scales = *model->fp8_scales();
    std::pair<double, std::vector<double>> last;
    for (int pass = 0; pass < passes; ++pass) {
      if (pass > 0) {
        ASSERT_TRUE(scales.Learn(gpu_->context, *scales.ReadAmax(gpu_->context)).ok());
        model->DropGradients(gpu_->context);
      }
      scales.BeginStep(gpu_->context);
      last = Gradients(*model, batch, recompute);
    }
    results.push_back(std::move(last));
  }
  for (const auto& result : results) EXPECT_TRUE(result == results[0]);
  const auto& [loss, gradients] = results[0];
  EXPECT_NEAR(loss, want, 0.02 * want);
  const auto [wide_loss, wide] = Gradients(*gpu_model_, batch, Recompute::kNone);
  EXPECT_NE(loss, wide_loss) << "not in FP8";
  const double* exact = cpu_model_->gradients().view().as<double>();
  const int64_t n = cpu_model_->layout().num_elements();
  const double error = RelativeDifference(exact, gradients.data(), n);
  EXPECT_LE(error, 32 * RelativeDifference(exact, wide.data(), n));
  EXPECT_LE(error, 0.5);
}

TEST_P(ModelCudaTest, LearnsAsTheCpuDoes) {
  AdamWConfig adamw;
  auto cpu_optimizer = Optimizer::Create(cpu_.context, *cpu_model_, adamw, cpu_.tracker);
  auto gpu_optimizer = Optimizer::Create(gpu_->context, *gpu_model_, adamw, gpu_->tracker);
  ASSERT_TRUE(cpu_optimizer.ok() && gpu_optimizer.ok());
  const PackedBatch batch = RandomBatch({120, 80}, GetParam().config.vocab_size, 6);
  const auto valid = static_cast<double>(batch.num_valid());
  double first = 0;
  for (int64_t step = 1; step <= 12; ++step) {
    const AdamWStepParams params{3e-3, step, 1.0};
    const double want =
        testing_support::ForwardBackward(cpu_, *cpu_model_, batch, 1 / valid) / valid;
    const double want_norm = testing_support::Update(cpu_, *cpu_optimizer, params, *cpu_model_);
    const ArenaScope scope(gpu_->arena);
    const TensorView sums = gpu_->arena.AllocateZero(DType::kF64, {2}, MemoryPurpose::kWorkspace);
    gpu_model_->ForwardBackward(gpu_->context, batch, 1 / valid, Recompute::kNone,
                                /*is_last=*/true, sums.Rows(0, 1));
    gpu_model_->FinishGradients(gpu_->context, sums.Rows(1, 2));
    gpu_optimizer->Update(gpu_->context, params, *gpu_model_, sums.Rows(1, 2));
    double values[2];
    const absl::Status status = ReadDoubles(gpu_->context, sums, absl::MakeSpan(values));
    ASSERT_TRUE(status.ok()) << status;
    // The two drift apart: each step amplifies the rounding of those before it.
    EXPECT_NEAR(values[0] / valid, want, (step <= 6 ? 0.01 : 0.03) * want) << "step " << step;
    if (step <= 3) {
      EXPECT_NEAR(std::sqrt(values[1]), want_norm, 0.1 * want_norm) << "step " << step;
    }
    if (step == 1) first = values[0] / valid;
    if (step == 12) {
      EXPECT_LT(values[0] / valid, first - 0.2);
    }
  }
}

TEST_P(ModelCudaTest, NanInTheWeightsUpdatesNothing) {
  auto optimizer = Optimizer::Create(gpu_->context, *gpu_model_, AdamWConfig(), gpu_->tracker);
  ASSERT_TRUE(optimizer.ok());
  const PackedBatch batch = RandomBatch({40}, GetParam().config.vocab_size, 6);
  HostMirror weights = *HostMirror::Create(gpu_->context, gpu_model_->weights());
  ASSERT_TRUE(weights.Download(gpu_->context).ok());
  const int64_t embedding = gpu_model_->layout().unit_begin()[ParameterLayout::kEmbeddingUnit];
  weights.view().as<float>()[embedding + batch.tokens[3] * GetParam().config.hidden_size] = NAN;
  ASSERT_TRUE(weights.Upload(gpu_->context).ok());
  gpu_model_->PublishWeights(gpu_->context);
  const ArenaScope scope(gpu_->arena);
  const TensorView sums = gpu_->arena.AllocateZero(DType::kF64, {2}, MemoryPurpose::kWorkspace);
  gpu_model_->ForwardBackward(gpu_->context, batch, 1, Recompute::kNone,
                              /*is_last=*/true, sums.Rows(0, 1));
  gpu_model_->FinishGradients(gpu_->context, sums.Rows(1, 2));
  optimizer->Update(gpu_->context, AdamWStepParams{1e-2, 1, 1.0}, *gpu_model_, sums.Rows(1, 2));
  double values[2];
  ASSERT_TRUE(ReadDoubles(gpu_->context, sums, absl::MakeSpan(values)).ok());
  EXPECT_TRUE(std::isnan(values[0]));
  EXPECT_FALSE(std::isfinite(values[1]));
  const std::vector<float> before(weights.view().as<float>(),
                                  weights.view().as<float>() + weights.view().num_elements());
  ASSERT_TRUE(weights.Download(gpu_->context).ok());
  EXPECT_EQ(std::memcmp(before.data(), weights.view().data, before.size() * 4), 0);
}

TEST_P(ModelCudaTest, DecodesAsItComputesWholeSequences) {
  const PackedBatch batch = RandomBatch({70}, GetParam().config.vocab_size, 8);
  const int64_t vocab = GetParam().config.vocab_size, padded = (vocab + 7) / 8 * 8;
  std::vector<double> want(static_cast<size_t>(70 * vocab));
  cpu_model_->Logits(cpu_.context, batch, TensorView(want.data(), DType::kF64, {70, vocab}));
  auto cache = DecodeCache::Create(gpu_->context, *gpu_model_, 70, gpu_->tracker);
  ASSERT_TRUE(cache.ok()) << cache.status();
  const ArenaScope scope(gpu_->arena);
  const TensorView logits =
      gpu_->arena.Allocate(DType::kBF16, {1, padded}, MemoryPurpose::kWorkspace).Columns(0, vocab);
  const auto tokens = absl::MakeConstSpan(batch.tokens);
  std::vector<double> got(static_cast<size_t>(vocab));
  for (int64_t at = 0; at < 70;) {
    const int64_t count = at == 0 ? 50 : 1;  // a prompt, then one by one
    DecodeStep(gpu_->context, *gpu_model_,
               tokens.subspan(static_cast<size_t>(at), static_cast<size_t>(count)), *cache, logits);
    at += count;
    ASSERT_TRUE(ReadDoubles(gpu_->context, logits, absl::MakeSpan(got)).ok());
    EXPECT_LE(RelativeDifference(want.data() + (at - 1) * vocab, got.data(), vocab), 3e-2) << at;
  }
}

INSTANTIATE_TEST_SUITE_P(AllFamilies, ModelCudaTest, testing::ValuesIn(GpuModels()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace evenkeel
