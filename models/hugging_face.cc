#include "models/hugging_face.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "models/config_json.h"
#include "nlohmann/json.hpp"
#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"
#include "runtime/checkpoint/json_file.h"
#include "runtime/checkpoint/safetensors_folder.h"
#include "runtime/ops/gpu.h"
#include "runtime/ops/host_mirror.h"

namespace evenkeel {
namespace {

using Json = nlohmann::json;

bool AllLayersAre(const ModelConfig& config, LayerKind kind) {
  for (int64_t i = 0; i < config.num_layers; ++i) {
    if (config.kind(i) != kind) return false;
  }
  return true;
}

Json RopeScalingJson(const RopeConfig& rope) {
  switch (rope.scaling) {
    case RopeScalingKind::kNone:
      return nullptr;
    case RopeScalingKind::kLinear:
      return {{"rope_type", "linear"}, {"factor", rope.factor}};
    case RopeScalingKind::kLlama3:
      return {{"rope_type", "llama3"},
              {"factor", rope.factor},
              {"low_freq_factor", rope.low_freq_factor},
              {"high_freq_factor", rope.high_freq_factor},
              {"original_max_position_embeddings",
               static_cast<int64_t>(rope.original_max_position_embeddings)}};
    case RopeScalingKind::kYarn: {
      Json json = {{"rope_type", "yarn"},
                   {"factor", rope.factor},
                   {"beta_fast", rope.beta_fast},
                   {"beta_slow", rope.beta_slow},
                   {"original_max_position_embeddings",
                    static_cast<int64_t>(rope.original_max_position_embeddings)}};
      if (rope.attention_factor > 0) json["attention_factor"] = rope.attention_factor;
      return json;
    }
  }
  return nullptr;
}

// The attention of Hugging Face's Llama has a bias on the output projection too when it has one on
// q, k and v; Qwen2's has not. So qkv_bias is Qwen2 and qk_norm Qwen3; both at once has no
// counterpart.
void FillLlamaConfig(const ModelConfig& c, Json& json) {
  const bool qwen2 = c.qkv_bias, qwen3 = c.qk_norm;
  json["model_type"] = qwen3 ? "qwen3" : qwen2 ? "qwen2" : "llama";
  json["architectures"] = {qwen3   ? "Qwen3ForCausalLM"
                           : qwen2 ? "Qwen2ForCausalLM"
                                   : "LlamaForCausalLM"};
  json["hidden_size"] = c.hidden_size;
  json["intermediate_size"] = c.intermediate_size;
  json["num_hidden_layers"] = c.num_layers;
  json["num_attention_heads"] = c.num_heads;
  json["num_key_value_heads"] = c.kv_heads();
  json["head_dim"] = c.head_size();
  json["hidden_act"] = "silu";
  json["rms_norm_eps"] = c.norm_eps;
  json["rope_theta"] = c.rope.theta;
  if (c.rope.scaling != RopeScalingKind::kNone) json["rope_scaling"] = RopeScalingJson(c.rope);
  json["attention_bias"] = qwen2;
  json["mlp_bias"] = false;
  if (c.max_position_embeddings > 0) json["max_position_embeddings"] = c.max_position_embeddings;
}

void FillTransNormerConfig(const ModelConfig& c, Json& json) {
  json["model_type"] = "transnormer";
  json["architectures"] = {"TransnormerForCausalLM"};
  json["decoder_embed_dim"] = c.hidden_size;
  json["decoder_layers"] = c.num_layers;
  json["decoder_attention_heads"] = c.num_heads;
  json["hidden_dim"] = c.num_heads * c.head_size();
  json["glu_dim"] = c.intermediate_size;
  json["norm_type"] = "simplermsnorm";
  json["linear_act_fun"] = "swish";
  json["glu_act"] = "none";
  json["bias"] = false;
  json["no_scale_embedding"] = !c.scale_embedding;
  json["init_std"] = c.init_std;
  json["causal"] = true;
  Json lrpe = Json::array();
  for (int64_t i = 0; i < c.num_layers; ++i) lrpe.push_back(c.uses_lrpe(i) ? 1 : 0);
  json["linear_use_lrpe_list"] = lrpe;
}

}  // namespace

Json ToHuggingFaceConfig(const ModelConfig& config, const std::string& dtype_name) {
  Json json;
  const bool plain_ends = !config.embedding_norm;
  if (AllLayersAre(config, LayerKind::kSoftmax) && plain_ends && config.final_norm_gain &&
      !config.scale_embedding && !(config.qkv_bias && config.qk_norm)) {
    FillLlamaConfig(config, json);
  } else if (AllLayersAre(config, LayerKind::kLightning) && plain_ends && !config.final_norm_gain &&
             std::fabs(config.norm_eps - 1e-6) < 1e-12) {
    FillTransNormerConfig(config, json);
  } else {
    json["model_type"] = "evenkeel";
  }
  json["vocab_size"] = config.vocab_size;
  json["tie_word_embeddings"] = config.tie_embeddings;
  json["initializer_range"] = config.init_std;
  json["torch_dtype"] = dtype_name;
  json["use_cache"] = true;
  // A model does not know its tokenizer; absent, transformers would take Llama's 1 and 2.
  json["bos_token_id"] = nullptr;
  json["eos_token_id"] = nullptr;
  json["evenkeel"] = ToJson(config);
  return json;
}

namespace {

// Fails on a string that is none of those whose mathematics we have.
void RequireOneOf(JsonReader& reader, const char* key, std::initializer_list<const char*> known) {
  std::string value = *known.begin();
  reader.String(key, &value);
  if (std::find(known.begin(), known.end(), value) == known.end()) {
    reader.Error(key, absl::StrCat("'", value, "' is not supported"));
  }
}

// Reads the keys that Hugging Face knows.
absl::StatusOr<ModelConfig> FromTheirKeys(const Json& json, const std::string& path) {
  JsonReader reader(json, path);
  ModelConfig c;
  std::string type;
  reader.String("model_type", &type);
  // The released TransNormerLLM configs have no model_type.
  if (type.empty() && reader.Find("decoder_embed_dim") != nullptr) type = "transnormer";
  reader.Float(type == "transnormer" ? "init_std" : "initializer_range", &c.init_std, 0, 10);
  reader.Int("vocab_size", &c.vocab_size, 1, int64_t{1} << 24, /*required=*/true);
  reader.Bool("tie_word_embeddings", &c.tie_embeddings);
  if (type == "llama" || type == "qwen2" || type == "qwen3") {
    reader.Int("hidden_size", &c.hidden_size, 1, int64_t{1} << 20, true);
    reader.Int("intermediate_size", &c.intermediate_size, 1, int64_t{1} << 22, true);
    reader.Int("num_hidden_layers", &c.num_layers, 1, 10000, true);
    reader.Int("num_attention_heads", &c.num_heads, 1, 65536, true);
    reader.Int("num_key_value_heads", &c.num_kv_heads, 1, 65536, false);
    reader.Int("head_dim", &c.head_dim, 1, 65536, false);
    reader.Int("max_position_embeddings", &c.max_position_embeddings, 1, int64_t{1} << 40, false);
    reader.Float("rms_norm_eps", &c.norm_eps, 1e-20, 1);
    reader.Float("rope_theta", &c.rope.theta, 1, 1e12);
    c.qk_norm = type == "qwen3";
    c.qkv_bias = type == "qwen2";
    bool attention_bias = false, mlp_bias = false;
    if (type != "qwen2") reader.Bool("attention_bias", &attention_bias);
    reader.Bool("mlp_bias", &mlp_bias);
    if (attention_bias || mlp_bias) {
      reader.Error("attention_bias", "biases of Llama and Qwen3 layers are not supported");
    }
    RequireOneOf(reader, "hidden_act", {"silu", "swish"});
    bool sliding = false;
    reader.Bool("use_sliding_window", &sliding);
    if (sliding) reader.Error("use_sliding_window", "sliding windows are not supported");
    // What transformers assumes where a scaling does not say.
    if (c.max_position_embeddings > 0) {
      c.rope.original_max_position_embeddings = static_cast<double>(c.max_position_embeddings);
    }
    ReadRope(reader, &c.rope);
  } else if (type == "transnormer") {
    c.layer_pattern = {LayerKind::kLightning};
    c.final_norm_gain = false;
    c.norm_eps = 1e-6;
    c.tie_embeddings = true;
    reader.Bool("tie_word_embeddings", &c.tie_embeddings);
    reader.Int("decoder_embed_dim", &c.hidden_size, 1, int64_t{1} << 20, true);
    reader.Int("decoder_layers", &c.num_layers, 1, 10000, true);
    reader.Int("decoder_attention_heads", &c.num_heads, 1, 65536, true);
    int64_t hidden_dim = c.hidden_size;
    reader.Int("hidden_dim", &hidden_dim, 1, int64_t{1} << 20, false);
    if (c.num_heads > 0 && hidden_dim % c.num_heads == 0) c.head_dim = hidden_dim / c.num_heads;
    reader.Int("glu_dim", &c.intermediate_size, -1, int64_t{1} << 22, false);
    if (c.intermediate_size <= 0) c.intermediate_size = c.hidden_size;
    bool no_scale = false, bias = false;
    reader.Bool("no_scale_embedding", &no_scale);
    reader.Bool("bias", &bias);
    if (bias) reader.Error("bias", "TransNormerLLM with biases is not supported");
    if (reader.Find("gate_dim") != nullptr) {
      reader.Error("gate_dim", "the low-rank gate of TransNormerLLM3 is not supported");
    }
    RequireOneOf(reader, "norm_type", {"simplermsnorm"});
    RequireOneOf(reader, "linear_act_fun", {"swish", "silu"});
    RequireOneOf(reader, "glu_act", {"none"});
    c.scale_embedding = !no_scale;
    reader.IndicesOfOnes("linear_use_lrpe_list", &c.lrpe_layers);
  } else {
    reader.Error("model_type", absl::StrCat("'", type,
                                            "' is not supported: llama, qwen2, qwen3, transnormer "
                                            "or a model this program wrote"));
  }
  EK_RETURN_IF_ERROR(reader.status());
  if (absl::Status status = Validate(c); !status.ok()) {
    return WithExitCode(
        absl::InvalidArgumentError(absl::StrCat(path, ": ", std::string(status.message()))),
        ExitCode::kCheckpoint);
  }
  return c;
}

// Whether Hugging Face sees the same model in both.
bool SameForHuggingFace(const ModelConfig& a, const ModelConfig& b) {
  Json json_a = ToHuggingFaceConfig(a, ""), json_b = ToHuggingFaceConfig(b, "");
  json_a.erase("evenkeel");
  json_b.erase("evenkeel");
  return json_a == json_b;
}

}  // namespace

absl::StatusOr<ModelConfig> FromHuggingFaceConfig(const Json& json, const std::string& path) {
  if (!json.is_object() || !json.contains("evenkeel")) return FromTheirKeys(json, path);
  EK_ASSIGN_OR_RETURN(const ModelConfig ours, FromJson(json["evenkeel"], path));
  const auto type = json.find("model_type");
  if (type == json.end() || *type == "evenkeel") return ours;
  // Other programs edit the keys they know and copy ours as they found them: where the two
  // disagree, ours are stale.
  EK_ASSIGN_OR_RETURN(ModelConfig theirs, FromTheirKeys(json, path));
  if (ours.max_position_embeddings == 0) theirs.max_position_embeddings = 0;
  return SameForHuggingFace(ours, theirs) ? ours : theirs;
}

absl::StatusOr<ModelConfig> ReadHuggingFaceConfig(const std::string& folder) {
  const std::string path = folder + "/config.json";
  EK_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path));
  return FromHuggingFaceConfig(json, path);
}

std::vector<SafetensorsTensor> NamedTensors(const ParameterLayout& layout, ConstTensorView flat,
                                            StoredType type) {
  std::vector<SafetensorsTensor> tensors;
  for (const ParameterSpec& spec : layout.specs()) {
    tensors.push_back(
        {spec.name, flat.Rows(spec.offset, spec.offset + spec.size()).Reshape(spec.shape), type});
  }
  return tensors;
}

absl::Status ReadWeights(const std::string& folder, const ModelConfig& config,
                         const ParameterLayout& layout, TensorView flat) {
  EK_ASSIGN_OR_RETURN(const SafetensorsFolder weights, SafetensorsFolder::Open(folder));
  std::set<std::string> wanted;
  for (const ParameterSpec& spec : layout.specs()) {
    wanted.insert(spec.name);
    EK_RETURN_IF_ERROR(weights.ReadTensor(
        spec.name, flat.Rows(spec.offset, spec.offset + spec.size()).Reshape(spec.shape)));
  }
  for (const std::string& name : weights.Names()) {
    // A tied head may be stored as a copy of the embedding; rotary tables are derived, not learned.
    const bool known = wanted.count(name) > 0 ||
                       (config.tie_embeddings && name == "lm_head.weight") ||
                       (name.size() > 8 && name.compare(name.size() - 8, 8, "inv_freq") == 0);
    if (!known) {
      return WithExitCode(absl::InvalidArgumentError(absl::StrCat(
                              folder, ": tensor '", name,
                              "' has no place in the model that config.json describes")),
                          ExitCode::kCheckpoint);
    }
  }
  return absl::OkStatus();
}

absl::Status WriteHuggingFaceFolder(const std::string& folder, const Model& model,
                                    ConstTensorView weights, StoredType type) {
  const std::string dtype_name = type == StoredType::kF64    ? "float64"
                                 : type == StoredType::kBF16 ? "bfloat16"
                                 : type == StoredType::kF16  ? "float16"
                                                             : "float32";
  EK_RETURN_IF_ERROR(WriteJsonFile(folder + "/config.json",
                                   ToHuggingFaceConfig(model.config(), dtype_name), /*sync=*/false)
                         .status());
  return WriteSafetensors(folder + "/model.safetensors",
                          NamedTensors(model.layout(), weights, type))
      .status();
}

absl::StatusOr<Model> LoadModel(const OpContext& context, const std::string& folder,
                                MemoryTracker& tracker) {
  EK_ASSIGN_OR_RETURN(const ModelConfig config, ReadHuggingFaceConfig(folder));
  EK_ASSIGN_OR_RETURN(Model model,
                      Model::Create(context, config, /*with_gradients=*/false, tracker));
  EK_ASSIGN_OR_RETURN(HostMirror weights, HostMirror::Create(context, model.weights()));
  EK_RETURN_IF_ERROR(ReadWeights(folder, config, model.layout(), weights.view()));
  EK_RETURN_IF_ERROR(weights.Upload(context));
  model.PublishWeights(context);
  EK_RETURN_IF_ERROR(WaitForOps(context));
  return model;
}

}  // namespace evenkeel
