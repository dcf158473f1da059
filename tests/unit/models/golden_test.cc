// Whole models against PyTorch in float64: logits, loss, every gradient, and fifty steps of AdamW.
// tests/golden/make_goldens.py made the files, document by document with explicit masks.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "absl/strings/str_cat.h"
#include "models/config_json.h"
#include "models/model.h"
#include "models/optimizer.h"
#include "nlohmann/json.hpp"
#include "runtime/checkpoint/json_file.h"
#include "runtime/checkpoint/safetensors_file.h"
#include "tests/support/tiny_models.h"

namespace evenkeel {
namespace {

using testing_support::ForwardBackward;
using testing_support::TestRuntime;
using testing_support::Update;

// Largest difference allowed, relative to the largest value of the same tensor.
constexpr double kTensorTolerance = 1e-10;
// A curve's steps feed on one another's rounding, which AdamW's division by sqrt(v) enlarges; the
// norm of the gradient feels it more than the loss.
constexpr double kLossTolerance = 1e-9;
constexpr double kNormTolerance = 1e-7;

class GoldenTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string stem = std::string(EK_GOLDEN_FOLDER) + "/" + GetParam();
    auto json = ReadJsonFile(stem + ".json");
    ASSERT_TRUE(json.ok()) << json.status();
    golden_ = *json;
    auto config = FromJson(golden_.at("config"), stem);
    ASSERT_TRUE(config.ok()) << config.status();
    auto file = SafetensorsReader::Open(stem + ".safetensors");
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = std::make_unique<SafetensorsReader>(*std::move(file));
    auto model =
        Model::Create(runtime_.context, *config, /*with_gradients=*/true, runtime_.tracker);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = std::make_unique<Model>(*std::move(model));
    for (const ParameterSpec& spec : model_->layout().specs()) {
      const absl::Status status =
          file_->ReadTensor(spec.name, model_->weights()
                                           .view()
                                           .Rows(spec.offset, spec.offset + spec.size())
                                           .Reshape(spec.shape));
      ASSERT_TRUE(status.ok()) << status;
    }
    const auto tokens = golden_.at("tokens").get<std::vector<int32_t>>();
    const auto targets = golden_.at("targets").get<std::vector<int32_t>>();
    size_t begin = 0;
    for (const size_t length : golden_.at("lengths").get<std::vector<size_t>>()) {
      batch_.AppendPiece(absl::MakeConstSpan(tokens).subspan(begin, length),
                         absl::MakeConstSpan(targets).subspan(begin, length));
      begin += length;
    }
    ASSERT_EQ(begin, tokens.size());
    ASSERT_TRUE(batch_.Validate(config->vocab_size).ok());
  }

  double MeanLossWithGradients() {
    const auto valid = static_cast<double>(batch_.num_valid());
    return ForwardBackward(runtime_, *model_, batch_, 1 / valid) / valid;
  }

  // Compares with the golden tensor of that name.
  void ExpectGolden(const std::string& name, ConstTensorView actual) {
    auto expected =
        Tensor::Create(DType::kF64, actual.shape, MemoryPurpose::kWorkspace, runtime_.tracker);
    ASSERT_TRUE(expected.ok()) << expected.status();
    const absl::Status status = file_->ReadTensor(name, expected->view());
    ASSERT_TRUE(status.ok()) << status;
    const double* want = expected->view().as<double>();
    const double* have = actual.as<double>();
    double largest = 0, difference = 0;
    for (int64_t i = 0; i < actual.num_elements(); ++i) {
      ASSERT_TRUE(std::isfinite(have[i])) << name << " [" << i << "]";
      largest = std::max(largest, std::fabs(want[i]));
      difference = std::max(difference, std::fabs(want[i] - have[i]));
    }
    ASSERT_GT(largest, 0) << name;
    EXPECT_LE(difference, kTensorTolerance * largest) << name;
    worst_ = std::max(worst_, difference / largest);
  }

  TestRuntime runtime_;
  nlohmann::json golden_;
  std::unique_ptr<SafetensorsReader> file_;
  std::unique_ptr<Model> model_;
  PackedBatch batch_;
  double worst_ = 0;
};

TEST_P(GoldenTest, LogitsLossAndGradients) {
  auto logits = Tensor::Create(DType::kF64, {batch_.num_tokens(), model_->config().vocab_size},
                               MemoryPurpose::kWorkspace, runtime_.tracker);
  ASSERT_TRUE(logits.ok()) << logits.status();
  model_->Logits(runtime_.context, batch_, logits->view());
  ExpectGolden("logits", logits->view());

  const auto loss = golden_.at("loss").get<double>();
  EXPECT_NEAR(MeanLossWithGradients(), loss, kTensorTolerance * loss);
  int64_t compared = 0;
  for (const ParameterSpec& spec : model_->layout().specs()) {
    if (!spec.trainable) continue;
    ExpectGolden("gradient." + spec.name, model_->gradients()
                                              .view()
                                              .Rows(spec.offset, spec.offset + spec.size())
                                              .Reshape(spec.shape));
    ++compared;
  }
  // Neither side has a parameter that the other lacks.
  const auto num_parameters = static_cast<int64_t>(model_->layout().specs().size());
  EXPECT_EQ(file_->num_tensors(), num_parameters + compared + 1);
  RecordProperty("worst_relative_difference", absl::StrCat(worst_));
}

TEST_P(GoldenTest, FiftyStepsOfAdamW) {
  const auto& adamw = golden_.at("adamw");
  AdamWConfig config;
  config.beta1 = adamw.at("beta1");
  config.beta2 = adamw.at("beta2");
  config.eps = adamw.at("eps");
  config.weight_decay = adamw.at("weight_decay");
  const double lr = adamw.at("lr"), clip = adamw.at("clip_norm");
  auto optimizer = Optimizer::Create(runtime_.context, *model_, config, runtime_.tracker);
  ASSERT_TRUE(optimizer.ok()) << optimizer.status();
  const auto losses = golden_.at("step_losses").get<std::vector<double>>();
  const auto norms = golden_.at("gradient_norms").get<std::vector<double>>();
  ASSERT_EQ(norms.size(), 50u);
  ASSERT_EQ(losses.size(), 51u);
  double worst = 0;
  const auto expect_loss = [&](double want, size_t step) {
    const double have = MeanLossWithGradients();
    EXPECT_NEAR(have, want, kLossTolerance * want) << "before step " << step;
    worst = std::max(worst, std::fabs(have / want - 1));
  };
  for (size_t i = 0; i < norms.size(); ++i) {
    expect_loss(losses[i], i + 1);
    const AdamWStepParams step{lr, static_cast<int64_t>(i) + 1, clip};
    const double norm = Update(runtime_, *optimizer, step, *model_);
    EXPECT_NEAR(norm, norms[i], kNormTolerance * norms[i]) << "before step " << i + 1;
  }
  expect_loss(losses.back(), losses.size());
  RecordProperty("worst_relative_difference", absl::StrCat(worst));
}

INSTANTIATE_TEST_SUITE_P(PyTorch, GoldenTest,
                         testing::Values("llama_gqa", "transnormerllm", "hybrid",
                                         "transnormer_v1_t1", "transnormer_v1_t2",
                                         "qwen2_llama3_rope", "qwen3_yarn"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace evenkeel
