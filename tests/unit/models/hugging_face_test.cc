// Models as Hugging Face folders: config.json of several origins, and weights there and back.
// tests/golden/check_transformers.py compares with transformers itself.
#include "models/hugging_face.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "models/config_json.h"
#include "nlohmann/json.hpp"
#include "runtime/base/exit_code.h"
#include "tests/support/tiny_models.h"

namespace evenkeel {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing_support::AllTinyModels;
using testing_support::MakeModel;
using testing_support::NamedModel;
using testing_support::TestRuntime;

json Llama(const char* changes = "{}") {
  json config = json::parse(R"({"model_type": "llama", "vocab_size": 61, "hidden_size": 32,
    "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "tie_word_embeddings": false, "pretraining_tp": 1})");
  config.merge_patch(json::parse(changes));
  return config;
}

// OpenNLPLab/TransNormerLLM2-3B-300B, with its LRPE list cut to four layers.
json TransNormerLlm(const char* changes = "{}") {
  json config = json::parse(R"({"architectures": ["TransnormerForCausalLM"], "pad_token_id": 0,
    "vocab_size": 64000, "use_cache": true, "init_std": 0.01, "decoder_embed_dim": 2560,
    "decoder_layers": 4, "decoder_attention_heads": 20, "no_scale_embedding": true,
    "add_bos_token": false, "norm_type": "simplermsnorm", "linear_use_lrpe_list": [1, 0, 1, 0],
    "hidden_dim": 2560, "linear_act_fun": "swish", "glu_dim": 6912, "bias": false,
    "torch_dtype": "bfloat16"})");
  config.merge_patch(json::parse(changes));
  return config;
}

ModelConfig Parse(const json& document) {
  auto config = FromHuggingFaceConfig(document, "c.json");
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : ModelConfig();
}

TEST(HuggingFaceConfig, RopeOfTransformers4And5) {
  const auto four = Parse(Llama(R"({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3",
    "factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 5.0,
    "original_max_position_embeddings": 64}})"));
  const auto five = Parse(Llama(R"({"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3",
    "factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 5.0,
    "original_max_position_embeddings": 64}})"));
  EXPECT_EQ(ToJson(four), ToJson(five));
  EXPECT_EQ(five.rope.scaling, RopeScalingKind::kLlama3);
  EXPECT_EQ(five.rope.theta, 5e5);
  EXPECT_EQ(five.rope.factor, 8);
  EXPECT_EQ(five.rope.low_freq_factor, 2);
  EXPECT_EQ(five.rope.high_freq_factor, 5);
  EXPECT_EQ(five.rope.original_max_position_embeddings, 64);

  const auto plain = Parse(Llama(R"({"rope_parameters": {"rope_theta": 77.0,
    "rope_type": "default"}})"));
  EXPECT_EQ(plain.rope.scaling, RopeScalingKind::kNone);
  EXPECT_EQ(plain.rope.theta, 77);
}

TEST(HuggingFaceConfig, YarnDefaults) {
  const auto config = Parse(Llama(R"({"rope_scaling": {"type": "yarn", "factor": 4.0}})"));
  EXPECT_EQ(config.rope.scaling, RopeScalingKind::kYarn);
  EXPECT_EQ(config.rope.original_max_position_embeddings, 256);
  EXPECT_EQ(config.rope.beta_fast, 32);
  EXPECT_NEAR(RopeAttentionFactor(config.rope), 1 + 0.1 * std::log(4.0), 1e-15);
  const auto scaled = Parse(Llama(R"({"rope_scaling": {"type": "yarn", "factor": 4.0,
    "mscale": 0.9, "mscale_all_dim": 0.4}})"));
  EXPECT_NEAR(RopeAttentionFactor(scaled.rope),
              (1 + 0.09 * std::log(4.0)) / (1 + 0.04 * std::log(4.0)), 1e-15);
}

TEST(HuggingFaceConfig, ReleasedTransNormerLlm) {
  const auto config = Parse(TransNormerLlm());
  EXPECT_TRUE(config.has_kind(LayerKind::kLightning));
  EXPECT_FALSE(config.has_kind(LayerKind::kSoftmax));
  EXPECT_EQ(config.hidden_size, 2560);
  EXPECT_EQ(config.head_size(), 128);
  EXPECT_EQ(config.intermediate_size, 6912);
  EXPECT_EQ(config.lrpe_layers, (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(config.init_std, 0.01);
  EXPECT_TRUE(config.tie_embeddings);
  EXPECT_FALSE(config.scale_embedding);
  EXPECT_FALSE(config.final_norm_gain);
  EXPECT_TRUE(Parse(TransNormerLlm(R"({"no_scale_embedding": false})")).scale_embedding);
}

TEST(HuggingFaceConfig, RefusesWhatWouldComputeSomethingElse) {
  const struct {
    json config;
    const char* key;
  } cases[] = {
      {Llama(R"({"model_type": "mistral"})"), "mistral"},
      {Llama(R"({"model_type": null})"), "model_type"},
      {Llama(R"({"hidden_size": null})"), "hidden_size"},
      {Llama(R"({"hidden_act": "gelu"})"), "hidden_act"},
      {Llama(R"({"attention_bias": true})"), "attention_bias"},
      {Llama(R"({"use_sliding_window": true})"), "use_sliding_window"},
      {Llama(R"({"num_key_value_heads": 3})"), "num_kv_heads"},
      {Llama(R"({"partial_rotary_factor": 0.5})"), "partial_rotary_factor"},
      {Llama(R"({"rope_scaling": {"type": "dynamic", "factor": 2.0}})"), "dynamic"},
      {Llama(R"({"rope_scaling": {"type": "yarn"}})"), "factor"},
      {Llama(R"({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": false}})"),
       "truncate"},
      {Llama(R"({"rope_parameters": [1]})"), "rope_parameters"},
      {TransNormerLlm(R"({"linear_act_fun": "none"})"), "linear_act_fun"},
      {TransNormerLlm(R"({"norm_type": "layernorm"})"), "norm_type"},
      {TransNormerLlm(R"({"bias": true})"), "bias"},
      {TransNormerLlm(R"({"gate_dim": 16})"), "gate_dim"},
      {json::array(), "not an object"},
  };
  for (const auto& c : cases) {
    const auto config = FromHuggingFaceConfig(c.config, "c.json");
    ASSERT_FALSE(config.ok()) << c.key;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(c.key));
    EXPECT_THAT(std::string(config.status().message()), HasSubstr("c.json"));
    EXPECT_EQ(ExitCodeOf(config.status()), ExitCode::kCheckpoint);
  }
}

// Another program that loads and saves our folder keeps the keys it does not know.
TEST(HuggingFaceConfig, TheirEditsWinOverOurStaleCopy) {
  ModelConfig ours = AllTinyModels().front().config;
  ours.depth_scaled_init = true;
  json document = ToHuggingFaceConfig(ours, "float32");
  EXPECT_TRUE(Parse(document).depth_scaled_init);
  document["max_position_embeddings"] = 2048;  // transformers' default, no edit
  EXPECT_EQ(ToJson(Parse(document)), ToJson(ours));
  document["rope_parameters"] = {{"rope_theta", 123.0}, {"rope_type", "default"}};
  EXPECT_EQ(Parse(document).rope.theta, 123);
}

class HuggingFaceFolder : public testing::TestWithParam<NamedModel> {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "hugging_face_test_" + GetParam().name;
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  TestRuntime runtime_;
  std::string folder_;
};

TEST_P(HuggingFaceFolder, ConfigAndWeightsSurvive) {
  const auto model = MakeModel(runtime_, GetParam().config);
  ASSERT_TRUE(
      WriteHuggingFaceFolder(folder_, *model, model->weights().view(), StoredType::kF64).ok());
  const auto loaded = LoadModel(runtime_.context, folder_, runtime_.tracker);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(ToJson(loaded->config()), ToJson(GetParam().config));
  const double* want = model->weights().view().as<double>();
  const double* have = loaded->weights().view().as<double>();
  for (int64_t i = 0; i < model->layout().num_elements(); ++i) ASSERT_EQ(have[i], want[i]) << i;
}

// What transformers would see, without our own key, means the same model.
TEST_P(HuggingFaceFolder, TheirKeysAloneAreEnough) {
  json document = ToHuggingFaceConfig(GetParam().config, "float32");
  if (document["model_type"] == "evenkeel") return;
  document.erase("evenkeel");
  const auto config = Parse(document);
  json want = ToHuggingFaceConfig(GetParam().config, "float32");
  json have = ToHuggingFaceConfig(config, "float32");
  want.erase("evenkeel");
  have.erase("evenkeel");
  EXPECT_EQ(have, want);
}

TEST_P(HuggingFaceFolder, MissingAndSurplusTensorsAreNamed) {
  const auto model = MakeModel(runtime_, GetParam().config);
  const auto& layout = model->layout();
  const std::string file = folder_ + "/model.safetensors";
  auto tensors = NamedTensors(layout, model->weights().view(), StoredType::kF64);
  const auto last = tensors.back();
  tensors.pop_back();
  ASSERT_TRUE(WriteSafetensors(file, tensors).ok());
  const auto missing = ReadWeights(folder_, model->config(), layout, model->weights().view());
  EXPECT_THAT(std::string(missing.message()), HasSubstr(last.name));
  tensors.push_back(last);
  tensors.push_back({"model.layers.0.stray.weight", last.tensor, StoredType::kF64});
  ASSERT_TRUE(WriteSafetensors(file, tensors).ok());
  const auto surplus = ReadWeights(folder_, model->config(), layout, model->weights().view());
  EXPECT_THAT(std::string(surplus.message()), HasSubstr("model.layers.0.stray.weight"));
  EXPECT_EQ(ExitCodeOf(surplus), ExitCode::kCheckpoint);
}

INSTANTIATE_TEST_SUITE_P(AllFamilies, HuggingFaceFolder, testing::ValuesIn(AllTinyModels()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace evenkeel
