#include "models/parameters.h"

#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "runtime/base/philox.h"

namespace evenkeel {
namespace {

// FNV-1a: the stream of random numbers a parameter draws from.
uint64_t HashName(const std::string& name) {
  uint64_t hash = 14695981039346656037ULL;
  for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  return hash;
}

// Finds parameters of a layer by the end of their names and makes views of them.
template <typename View>
class ViewCutter {
 public:
  ViewCutter(const std::vector<ParameterSpec>& specs, View flat) : flat_(flat) {
    for (const ParameterSpec& spec : specs) by_name_[spec.name] = &spec;
  }

  View One(const std::string& name) const {
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) return View();
    return Cut(*found->second, found->second->shape);
  }

  // One view over adjacent parameters, stacked along the first dimension.
  View Stack(const std::vector<std::string>& names) const {
    const auto first = by_name_.find(names.front());
    if (first == by_name_.end()) return View();
    Shape shape = first->second->shape;
    int64_t end = first->second->offset + first->second->size();
    for (size_t i = 1; i < names.size(); ++i) {
      const ParameterSpec& next = *by_name_.at(names[i]);
      EK_CHECK(next.offset == end) << names[i] << " does not follow " << names[i - 1];
      shape.dims[0] += next.shape[0];
      end += next.size();
    }
    return Cut(*first->second, shape);
  }

 private:
  View Cut(const ParameterSpec& spec, Shape shape) const {
    return flat_.Rows(spec.offset, spec.offset + shape.num_elements()).Reshape(shape);
  }

  View flat_;
  std::map<std::string, const ParameterSpec*> by_name_;
};

std::string LayerPrefix(int64_t layer) {
  return absl::StrCat("model.layers.", layer, ".");
}

}  // namespace

void ParameterLayout::Add(std::string name, Shape shape, InitKind init, double init_std,
                          bool decays) {
  ParameterSpec spec;
  spec.name = std::move(name);
  spec.shape = shape;
  spec.offset = num_elements_;
  spec.init = init;
  spec.init_std = init_std;
  spec.decays = decays;
  num_elements_ += spec.size();
  specs_.push_back(std::move(spec));
}

void ParameterLayout::AddLinear(const std::string& name, int64_t rows, int64_t columns,
                                double init_std) {
  Add(name + ".weight", {rows, columns}, InitKind::kNormal, init_std, /*decays=*/true);
}

ParameterLayout::ParameterLayout(const ModelConfig& config) : config_(config) {
  Add("model.embed_tokens.weight", {config.vocab_size, config.hidden_size}, InitKind::kNormal,
      config.init_std, /*decays=*/true);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    layer_begin_.push_back(num_elements_);
    AddBlock(layer);
  }
  layer_begin_.push_back(num_elements_);
  if (config.final_norm_gain) {
    Add("model.norm.weight", {config.hidden_size}, InitKind::kOne, 0, /*decays=*/false);
  }
  if (!config.tie_embeddings) {
    AddLinear("lm_head", config.vocab_size, config.hidden_size, config.init_std);
  }
}

void ParameterLayout::AddBlock(int64_t layer) {
  const ModelConfig& c = config_;
  const std::string prefix = LayerPrefix(layer);
  const int64_t width = c.hidden_size, ffn = c.intermediate_size;
  const int64_t q_width = c.num_heads * c.head_size(), kv_width = c.kv_heads() * c.head_size();
  const double std = c.init_std;
  const double out_std =
      c.depth_scaled_init ? std / std::sqrt(2.0 * static_cast<double>(c.num_layers)) : std;
  const auto add_vector = [&](const std::string& name, int64_t size, InitKind init) {
    Add(prefix + name, {size}, init, 0, /*decays=*/false);
  };
  switch (c.kind(layer)) {
    case LayerKind::kSoftmax:
      add_vector("input_layernorm.weight", width, InitKind::kOne);
      AddLinear(prefix + "self_attn.q_proj", q_width, width, std);
      AddLinear(prefix + "self_attn.k_proj", kv_width, width, std);
      AddLinear(prefix + "self_attn.v_proj", kv_width, width, std);
      if (c.qkv_bias) {
        add_vector("self_attn.q_proj.bias", q_width, InitKind::kZero);
        add_vector("self_attn.k_proj.bias", kv_width, InitKind::kZero);
        add_vector("self_attn.v_proj.bias", kv_width, InitKind::kZero);
      }
      if (c.qk_norm) {
        add_vector("self_attn.q_norm.weight", c.head_size(), InitKind::kOne);
        add_vector("self_attn.k_norm.weight", c.head_size(), InitKind::kOne);
      }
      AddLinear(prefix + "self_attn.o_proj", width, q_width, out_std);
      add_vector("post_attention_layernorm.weight", width, InitKind::kOne);
      AddLinear(prefix + "mlp.gate_proj", ffn, width, std);
      AddLinear(prefix + "mlp.up_proj", ffn, width, std);
      AddLinear(prefix + "mlp.down_proj", width, ffn, out_std);
      break;
    case LayerKind::kLightning:
      AddLinear(prefix + "token_mixer.qkvu_proj", 4 * q_width, width, std);
      if (c.uses_lrpe(layer)) {
        Add(prefix + "token_mixer.lrpe.theta", {c.num_heads, 1, c.head_size()},
            InitKind::kLrpeTheta, 0, /*decays=*/false);
      }
      AddLinear(prefix + "token_mixer.out_proj", width, q_width, out_std);
      AddLinear(prefix + "channel_mixer.l1", ffn, width, std);
      AddLinear(prefix + "channel_mixer.l2", ffn, width, std);
      AddLinear(prefix + "channel_mixer.l3", width, ffn, out_std);
      break;
    case LayerKind::kNormAttention:
    case LayerKind::kDiagAttention:
      for (const char* name : {"q_proj", "k_proj", "v_proj"}) {
        AddLinear(prefix + "token_mixer." + name, q_width, width, std);
      }
      for (const char* name : {"q_proj", "k_proj", "v_proj"}) {
        add_vector(absl::StrCat("token_mixer.", name, ".bias"), q_width, InitKind::kZero);
      }
      add_vector("token_mixer.urpe.theta", c.head_size() / 2, InitKind::kUrpeTheta);
      add_vector("token_mixer.urpe.reflection", c.head_size(), InitKind::kUnitVector);
      specs_.back().trainable = false;
      AddLinear(prefix + "token_mixer.out_proj", width, q_width, out_std);
      add_vector("token_mixer.out_proj.bias", width, InitKind::kZero);
      AddLinear(prefix + "channel_mixer.l1", ffn, width, std);
      AddLinear(prefix + "channel_mixer.l2", ffn, width, std);
      add_vector("channel_mixer.l1.bias", ffn, InitKind::kZero);
      add_vector("channel_mixer.l2.bias", ffn, InitKind::kZero);
      AddLinear(prefix + "channel_mixer.l3", width, ffn, out_std);
      add_vector("channel_mixer.l3.bias", width, InitKind::kZero);
      break;
  }
}

int64_t ParameterLayout::num_parameters() const {
  int64_t count = 0;
  for (const ParameterSpec& spec : specs_) count += spec.trainable ? spec.size() : 0;
  return count;
}

template <typename View>
ModelViews<View> ParameterLayout::MakeViews(View flat, View exact) const {
  const ViewCutter<View> cut(specs_, flat), cut_exact(specs_, exact);
  ModelViews<View> views;
  views.embedding = cut.One("model.embed_tokens.weight");
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    const std::string prefix = LayerPrefix(layer);
    const auto one = [&](const char* name) { return cut.One(prefix + name); };
    const auto stack = [&](std::vector<std::string> names) {
      for (std::string& name : names) name = prefix + name;
      return cut.Stack(names);
    };
    BlockViews<View> block;
    if (config_.kind(layer) == LayerKind::kSoftmax) {
      block.attention_norm = one("input_layernorm.weight");
      block.in_proj =
          stack({"self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"});
      block.in_proj_bias =
          stack({"self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"});
      block.q_norm = one("self_attn.q_norm.weight");
      block.k_norm = one("self_attn.k_norm.weight");
      block.out_proj = one("self_attn.o_proj.weight");
      block.mlp_norm = one("post_attention_layernorm.weight");
      block.mlp_pair = stack({"mlp.gate_proj.weight", "mlp.up_proj.weight"});
      block.mlp_down = one("mlp.down_proj.weight");
    } else {
      if (config_.kind(layer) == LayerKind::kLightning) {
        block.in_proj = one("token_mixer.qkvu_proj.weight");
        block.theta = cut_exact.One(prefix + "token_mixer.lrpe.theta");
        if (!block.theta.empty()) {
          block.theta = block.theta.Reshape({config_.num_heads, config_.head_size()});
        }
      } else {
        block.in_proj = stack({"token_mixer.q_proj.weight", "token_mixer.k_proj.weight",
                               "token_mixer.v_proj.weight"});
        block.in_proj_bias = stack(
            {"token_mixer.q_proj.bias", "token_mixer.k_proj.bias", "token_mixer.v_proj.bias"});
        block.theta = cut_exact.One(prefix + "token_mixer.urpe.theta");
        block.reflection = cut_exact.One(prefix + "token_mixer.urpe.reflection");
      }
      block.out_proj = one("token_mixer.out_proj.weight");
      block.out_proj_bias = one("token_mixer.out_proj.bias");
      block.mlp_pair = stack({"channel_mixer.l1.weight", "channel_mixer.l2.weight"});
      block.mlp_pair_bias = stack({"channel_mixer.l1.bias", "channel_mixer.l2.bias"});
      block.mlp_down = one("channel_mixer.l3.weight");
      block.mlp_down_bias = one("channel_mixer.l3.bias");
    }
    views.blocks.push_back(block);
  }
  views.final_norm = cut.One("model.norm.weight");
  views.head = config_.tie_embeddings ? views.embedding : cut.One("lm_head.weight");
  return views;
}

ModelViews<ConstTensorView> ParameterLayout::Views(ConstTensorView flat,
                                                   ConstTensorView exact) const {
  return MakeViews(flat, exact);
}

ModelViews<TensorView> ParameterLayout::Views(TensorView flat) const {
  return MakeViews(flat, flat);
}

void ParameterLayout::Initialize(ThreadPool& pool, uint64_t seed, TensorView flat) const {
  DispatchFloat(flat.dtype, [&]<typename T>() {
    for (const ParameterSpec& spec : specs_) {
      T* out = flat.as<T>() + spec.offset;
      const Philox random(seed, HashName(spec.name));
      const int64_t n = spec.size();
      double unit_scale = 1;
      if (spec.init == InitKind::kUnitVector) {
        double sum = 0;
        for (int64_t i = 0; i < n; ++i) {
          const double x = random.Normal(static_cast<uint64_t>(i));
          sum += x * x;
        }
        unit_scale = 1 / std::sqrt(sum);
      }
      pool.ParallelFor(n, 1024, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const auto index = static_cast<uint64_t>(i);
          double value = 0;
          switch (spec.init) {
            case InitKind::kNormal:
              value = spec.init_std * random.Normal(index);
              break;
            case InitKind::kZero:
              value = 0;
              break;
            case InitKind::kOne:
              value = 1;
              break;
            case InitKind::kLrpeTheta:
              value = std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(n));
              break;
            case InitKind::kUrpeTheta:
              value = std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(2 * n));
              break;
            case InitKind::kUnitVector:
              value = unit_scale * random.Normal(index);
              break;
          }
          out[i] = static_cast<T>(value);
        }
      });
    }
  });
}

}  // namespace evenkeel
