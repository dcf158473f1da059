#include "models/model_config.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/config/config_fields.h"

namespace evenkeel {
namespace {

constexpr std::pair<const char*, LayerKind> kKindNames[] = {
    {"softmax", LayerKind::kSoftmax},
    {"lightning", LayerKind::kLightning},
    {"norm_attention", LayerKind::kNormAttention},
    {"diag_attention", LayerKind::kDiagAttention},
};

constexpr int64_t kMaxDimension = int64_t{1} << 24;

bool ParsePattern(const std::vector<std::string>& names, std::vector<LayerKind>* pattern,
                  std::string* bad_name) {
  pattern->clear();
  for (const std::string& name : names) {
    const auto* found = std::find_if(std::begin(kKindNames), std::end(kKindNames),
                                     [&](const auto& entry) { return name == entry.first; });
    if (found == std::end(kKindNames)) {
      *bad_name = name;
      return false;
    }
    pattern->push_back(found->second);
  }
  return !pattern->empty();
}

}  // namespace

const char* NameOf(LayerKind kind) {
  for (const auto& [name, value] : kKindNames) {
    if (value == kind) return name;
  }
  return "?";
}

bool ModelConfig::uses_lrpe(int64_t layer) const {
  return kind(layer) == LayerKind::kLightning &&
         std::find(lrpe_layers.begin(), lrpe_layers.end(), layer) != lrpe_layers.end();
}

bool ModelConfig::has_kind(LayerKind wanted) const {
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    if (kind(layer) == wanted) return true;
  }
  return false;
}

void DescribeFields(ConfigFields& fields, ModelConfig& config) {
  std::vector<std::string> names;
  for (LayerKind kind : config.layer_pattern) names.push_back(NameOf(kind));
  fields.StringList(
      "layer_pattern", &names,
      "kind of each layer, repeated: softmax, lightning, norm_attention, diag_attention");
  std::string bad_name;
  if (!ParsePattern(names, &config.layer_pattern, &bad_name)) {
    fields.Error("layer_pattern",
                 bad_name.empty() ? "is empty: name at least one kind of layer"
                                  : absl::StrCat("unknown kind of layer '", bad_name,
                                                 "'; kinds are softmax, lightning, norm_attention, "
                                                 "diag_attention"));
    config.layer_pattern = {LayerKind::kSoftmax};
  }
  fields.Int("vocab_size", &config.vocab_size, "tokens in the vocabulary", 1, kMaxDimension);
  fields.Required("vocab_size");
  fields.Int("hidden_size", &config.hidden_size, "width of the residual stream", 1, kMaxDimension);
  fields.Required("hidden_size");
  fields.Int("intermediate_size", &config.intermediate_size, "width inside the feed-forward", 1,
             kMaxDimension);
  fields.Required("intermediate_size");
  fields.Int("num_layers", &config.num_layers, "number of layers", 1, 10000);
  fields.Required("num_layers");
  fields.Int("num_heads", &config.num_heads, "attention heads", 1, 65536);
  fields.Required("num_heads");
  fields.Int("num_kv_heads", &config.num_kv_heads,
             "key/value heads of softmax layers; 0 = num_heads", 0, 65536);
  fields.Int("head_dim", &config.head_dim, "size of a head; 0 = hidden_size / num_heads", 0, 65536);
  fields.Int("max_position_embeddings", &config.max_position_embeddings,
             "longest sequence the model is meant for; 0 = any", 0, int64_t{1} << 40);
  fields.Float("norm_eps", &config.norm_eps, "added to the mean square in norms", 1e-20, 1);
  fields.Bool("tie_embeddings", &config.tie_embeddings, "the head shares the embedding's weights");
  fields.Bool("scale_embedding", &config.scale_embedding, "embeddings times sqrt(hidden_size)");
  fields.Bool("embedding_norm", &config.embedding_norm,
              "norm after the embedding (TransNormer v1)");
  fields.Bool("final_norm_gain", &config.final_norm_gain,
              "learned gain in the norm before the head");
  fields.Float("rope_theta", &config.rope.theta, "base of the rotary embedding", 1, 1e12);
  fields.Section("rope_scaling", "stretches the rotary embedding to longer sequences",
                 [&](ConfigFields& scaling) {
                   RopeConfig& rope = config.rope;
                   scaling.Enum("type", &rope.scaling, "kind of scaling",
                                {{"none", RopeScalingKind::kNone},
                                 {"linear", RopeScalingKind::kLinear},
                                 {"llama3", RopeScalingKind::kLlama3},
                                 {"yarn", RopeScalingKind::kYarn}});
                   scaling.Float("factor", &rope.factor, "how much longer", 1, 1e6);
                   scaling.Float("low_freq_factor", &rope.low_freq_factor, "llama3", 1e-6, 1e6);
                   scaling.Float("high_freq_factor", &rope.high_freq_factor, "llama3", 1e-6, 1e6);
                   scaling.Float("original_max_position_embeddings",
                                 &rope.original_max_position_embeddings, "llama3, yarn", 1, 1e12);
                   scaling.Float("beta_fast", &rope.beta_fast, "yarn", 1e-6, 1e6);
                   scaling.Float("beta_slow", &rope.beta_slow, "yarn", 1e-6, 1e6);
                   scaling.Float("attention_factor", &rope.attention_factor,
                                 "yarn; 0 = 0.1 ln(factor) + 1", 0, 1e6);
                 });
  fields.Bool("qkv_bias", &config.qkv_bias, "bias on q, k and v of softmax layers (Qwen2)");
  fields.Bool("qk_norm", &config.qk_norm, "norm of every q and k head in softmax layers (Qwen3)");
  std::vector<std::string> lrpe;
  for (int64_t layer : config.lrpe_layers) lrpe.push_back(absl::StrCat(layer));
  fields.StringList("lrpe_layers", &lrpe, "lightning layers that use LRPE, by index from 0");
  config.lrpe_layers.clear();
  for (const std::string& text : lrpe) {
    int64_t layer = 0;
    if (!absl::SimpleAtoi(text, &layer) || layer < 0) {
      fields.Error("lrpe_layers", absl::StrCat("'", text, "' is not the index of a layer"));
    } else if (config.num_layers > 0 && layer >= config.num_layers) {
      fields.Error("lrpe_layers", absl::StrCat("there is no layer ", layer, ": the last of ",
                                               config.num_layers, " is ", config.num_layers - 1));
    } else {
      config.lrpe_layers.push_back(layer);
    }
  }
  fields.Enum("variant", &config.variant, "TransNormer v1: t1 (ReLU, elu) or t2 (softmax, 1 + elu)",
              {{"t1", TransNormerVariant::kT1}, {"t2", TransNormerVariant::kT2}});
  fields.Int("block_size", &config.block_size, "tokens a block of diag_attention", 1,
             kMaxDimension);
  fields.Float("init_std", &config.init_std, "standard deviation of initial weights", 0, 10);
  fields.Bool("depth_scaled_init", &config.depth_scaled_init,
              "scale projections into the residual stream by 1/sqrt(2 num_layers)");
  if (absl::Status status = Validate(config); !status.ok()) {
    fields.Error("num_heads", std::string(status.message()));
  }
}

absl::Status Validate(const ModelConfig& config) {
  if (config.vocab_size <= 0 || config.hidden_size <= 0 || config.intermediate_size <= 0 ||
      config.num_layers <= 0 || config.num_heads <= 0) {
    return absl::OkStatus();  // a missing or bad size was reported on its own
  }
  if (config.head_dim == 0 && config.hidden_size % config.num_heads != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "hidden_size %d is not a multiple of num_heads %d: set head_dim, or other heads",
        config.hidden_size, config.num_heads));
  }
  if (config.num_heads % config.kv_heads() != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "num_heads %d is not a multiple of num_kv_heads %d", config.num_heads, config.kv_heads()));
  }
  if (config.has_kind(LayerKind::kSoftmax) && config.head_size() % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "head_dim %d is odd: rotary embeddings turn pairs of dimensions", config.head_size()));
  }
  const bool v1 =
      config.has_kind(LayerKind::kNormAttention) || config.has_kind(LayerKind::kDiagAttention);
  if (v1 && config.head_size() % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("head_dim %d is odd: Urpe turns pairs of dimensions", config.head_size()));
  }
  return absl::OkStatus();
}

}  // namespace evenkeel
