#include "models/config_json.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"

namespace evenkeel {
namespace {

using Json = nlohmann::json;

constexpr std::pair<const char*, RopeScalingKind> kScalingNames[] = {
    {"none", RopeScalingKind::kNone},     {"default", RopeScalingKind::kNone},
    {"linear", RopeScalingKind::kLinear}, {"llama3", RopeScalingKind::kLlama3},
    {"yarn", RopeScalingKind::kYarn},
};

constexpr LayerKind kKinds[] = {LayerKind::kSoftmax, LayerKind::kLightning,
                                LayerKind::kNormAttention, LayerKind::kDiagAttention};

void RefusePartialRotation(JsonReader& reader) {
  double rotated = 1;
  reader.Float("partial_rotary_factor", &rotated, 0, 1);
  if (rotated != 1) {
    reader.Error("partial_rotary_factor", "rotating a part of a head is not supported");
  }
}

void ReadScaling(JsonReader& reader, RopeConfig* rope) {
  std::string type = "none";
  reader.String("type", &type);
  reader.String("rope_type", &type);
  bool known = false;
  for (const auto& [name, kind] : kScalingNames) {
    if (type == name) {
      rope->scaling = kind;
      known = true;
    }
  }
  if (!known) reader.Error("rope_type", absl::StrCat("'", type, "' is not supported"));
  if (rope->scaling != RopeScalingKind::kNone && reader.Find("factor") == nullptr) {
    reader.Error("factor", "is missing");
  }
  reader.Float("rope_theta", &rope->theta, 1, 1e12);
  reader.Float("factor", &rope->factor, 1, 1e6);
  reader.Float("low_freq_factor", &rope->low_freq_factor, 1e-6, 1e6);
  reader.Float("high_freq_factor", &rope->high_freq_factor, 1e-6, 1e6);
  reader.Float("original_max_position_embeddings", &rope->original_max_position_embeddings, 1,
               1e12);
  reader.Float("beta_fast", &rope->beta_fast, 1e-6, 1e6);
  reader.Float("beta_slow", &rope->beta_slow, 1e-6, 1e6);
  reader.Float("attention_factor", &rope->attention_factor, 0, 1e6);
  // DeepSeek's way of writing YaRN's attention factor: a ratio of two scaled logarithms.
  double mscale = 0, mscale_all_dim = 0;
  reader.Float("mscale", &mscale, 0, 1e6);
  reader.Float("mscale_all_dim", &mscale_all_dim, 0, 1e6);
  if (rope->attention_factor == 0 && mscale > 0 && mscale_all_dim > 0) {
    const double log_factor = 0.1 * std::log(rope->factor);
    rope->attention_factor = (mscale * log_factor + 1) / (mscale_all_dim * log_factor + 1);
  }
  bool truncate = true;
  reader.Bool("truncate", &truncate);
  if (!truncate) reader.Error("truncate", "YaRN with a fractional ramp is not supported");
  RefusePartialRotation(reader);
}

}  // namespace

JsonReader::JsonReader(const Json& object, std::string path)
    : object_(object), path_(std::move(path)) {
  if (!object.is_object()) Error("(top)", "is not an object");
}

const Json* JsonReader::Find(const char* key) const {
  if (!object_.is_object()) return nullptr;
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

void JsonReader::Error(const char* key, const std::string& message) {
  if (!status_.ok()) return;
  status_ = WithExitCode(absl::InvalidArgumentError(absl::StrCat(path_, ": ", key, ": ", message)),
                         ExitCode::kCheckpoint);
}

void JsonReader::Int(const char* key, int64_t* value, int64_t min, int64_t max, bool required) {
  const Json* found = Find(key);
  if (found == nullptr) {
    if (required) Error(key, "is missing");
    return;
  }
  if (!found->is_number_integer() ||
      (found->is_number_unsigned() && found->get<uint64_t>() > static_cast<uint64_t>(max))) {
    return Error(key, absl::StrCat("is not an integer from ", min, " to ", max));
  }
  const auto number = found->get<int64_t>();
  if (number < min || number > max) {
    return Error(key, absl::StrCat(number, " is not from ", min, " to ", max));
  }
  *value = number;
}

void JsonReader::Float(const char* key, double* value, double min, double max) {
  const Json* found = Find(key);
  if (found == nullptr) return;
  if (!found->is_number()) return Error(key, "is not a number");
  const auto number = found->get<double>();
  if (!(number >= min && number <= max)) {
    return Error(key, absl::StrCat(number, " is not from ", min, " to ", max));
  }
  *value = number;
}

void JsonReader::Bool(const char* key, bool* value) {
  const Json* found = Find(key);
  if (found == nullptr) return;
  if (!found->is_boolean()) return Error(key, "is neither true nor false");
  *value = found->get<bool>();
}

void JsonReader::String(const char* key, std::string* value) {
  const Json* found = Find(key);
  if (found == nullptr) return;
  if (!found->is_string()) return Error(key, "is not a string");
  *value = found->get<std::string>();
}

void JsonReader::IndicesOfOnes(const char* key, std::vector<int64_t>* indices) {
  const Json* found = Find(key);
  if (found == nullptr) return;
  if (!found->is_array() || found->size() > 10000) return Error(key, "is not a list of 0 and 1");
  indices->clear();
  for (size_t i = 0; i < found->size(); ++i) {
    if (!(*found)[i].is_number_integer()) return Error(key, "is not a list of 0 and 1");
    if ((*found)[i].get<int64_t>() != 0) indices->push_back(static_cast<int64_t>(i));
  }
}

void ReadRope(JsonReader& reader, RopeConfig* rope) {
  RefusePartialRotation(reader);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const Json* found = reader.Find(key);
    if (found == nullptr) continue;
    JsonReader scaling(*found, absl::StrCat(reader.path(), ": ", key));
    ReadScaling(scaling, rope);
    if (!scaling.status().ok()) reader.Error(key, std::string(scaling.status().message()));
  }
}

Json ToJson(const ModelConfig& c) {
  Json pattern = Json::array();
  for (LayerKind kind : c.layer_pattern) pattern.push_back(NameOf(kind));
  const char* scaling = "none";
  for (const auto& [name, kind] : kScalingNames) {
    if (kind == c.rope.scaling && kind != RopeScalingKind::kNone) scaling = name;
  }
  return {{"layer_pattern", pattern},
          {"vocab_size", c.vocab_size},
          {"hidden_size", c.hidden_size},
          {"intermediate_size", c.intermediate_size},
          {"num_layers", c.num_layers},
          {"num_heads", c.num_heads},
          {"num_kv_heads", c.num_kv_heads},
          {"head_dim", c.head_dim},
          {"max_position_embeddings", c.max_position_embeddings},
          {"norm_eps", c.norm_eps},
          {"tie_embeddings", c.tie_embeddings},
          {"scale_embedding", c.scale_embedding},
          {"embedding_norm", c.embedding_norm},
          {"final_norm_gain", c.final_norm_gain},
          {"rope_scaling",
           {{"rope_type", scaling},
            {"rope_theta", c.rope.theta},
            {"factor", c.rope.factor},
            {"low_freq_factor", c.rope.low_freq_factor},
            {"high_freq_factor", c.rope.high_freq_factor},
            {"original_max_position_embeddings", c.rope.original_max_position_embeddings},
            {"beta_fast", c.rope.beta_fast},
            {"beta_slow", c.rope.beta_slow},
            {"attention_factor", c.rope.attention_factor}}},
          {"qkv_bias", c.qkv_bias},
          {"qk_norm", c.qk_norm},
          {"lrpe_layers", c.lrpe_layers},
          {"variant", c.variant == TransNormerVariant::kT1 ? "t1" : "t2"},
          {"block_size", c.block_size},
          {"init_std", c.init_std},
          {"depth_scaled_init", c.depth_scaled_init}};
}

absl::StatusOr<ModelConfig> FromJson(const Json& json, const std::string& path) {
  JsonReader reader(json, absl::StrCat(path, ": evenkeel"));
  ModelConfig c;
  if (const Json* pattern = reader.Find("layer_pattern"); pattern != nullptr) {
    c.layer_pattern.clear();
    if (pattern->is_array() && pattern->size() <= 10000) {
      for (const Json& name : *pattern) {
        for (LayerKind kind : kKinds) {
          if (name.is_string() && name.get<std::string>() == NameOf(kind)) {
            c.layer_pattern.push_back(kind);
          }
        }
      }
    }
    if (c.layer_pattern.empty() || c.layer_pattern.size() != pattern->size()) {
      reader.Error("layer_pattern", "is not a list of kinds of layers");
      c.layer_pattern = {LayerKind::kSoftmax};
    }
  }
  constexpr int64_t kMax = int64_t{1} << 24;
  reader.Int("vocab_size", &c.vocab_size, 1, kMax, true);
  reader.Int("hidden_size", &c.hidden_size, 1, kMax, true);
  reader.Int("intermediate_size", &c.intermediate_size, 1, kMax, true);
  reader.Int("num_layers", &c.num_layers, 1, 10000, true);
  reader.Int("num_heads", &c.num_heads, 1, 65536, true);
  reader.Int("num_kv_heads", &c.num_kv_heads, 0, 65536, false);
  reader.Int("head_dim", &c.head_dim, 0, 65536, false);
  reader.Int("max_position_embeddings", &c.max_position_embeddings, 0, int64_t{1} << 40, false);
  reader.Float("norm_eps", &c.norm_eps, 1e-20, 1);
  reader.Bool("tie_embeddings", &c.tie_embeddings);
  reader.Bool("scale_embedding", &c.scale_embedding);
  reader.Bool("embedding_norm", &c.embedding_norm);
  reader.Bool("final_norm_gain", &c.final_norm_gain);
  ReadRope(reader, &c.rope);
  reader.Bool("qkv_bias", &c.qkv_bias);
  reader.Bool("qk_norm", &c.qk_norm);
  if (const Json* layers = reader.Find("lrpe_layers"); layers != nullptr) {
    c.lrpe_layers.clear();
    for (const Json& layer : *layers) {
      const bool is_index =
          layer.is_number_integer() && layer.get<int64_t>() >= 0 && layer.get<int64_t>() < 10000;
      if (!is_index) {
        reader.Error("lrpe_layers", "is not a list of layer indices");
        break;
      }
      c.lrpe_layers.push_back(layer.get<int64_t>());
    }
  }
  std::string variant = "t2";
  reader.String("variant", &variant);
  c.variant = variant == "t1" ? TransNormerVariant::kT1 : TransNormerVariant::kT2;
  reader.Int("block_size", &c.block_size, 1, kMax, false);
  reader.Float("init_std", &c.init_std, 0, 10);
  reader.Bool("depth_scaled_init", &c.depth_scaled_init);
  EK_RETURN_IF_ERROR(reader.status());
  return c;
}

}  // namespace evenkeel
