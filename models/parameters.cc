#include "models/parameters.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace evenkeel {
namespace {

std::string LayerPrefix(int64_t layer) {
  return absl::StrCat("model.layers.", layer, ".");
}

// Standard deviation of the projections that write to the residual stream.
double OutputStd(const ModelConfig& config) {
  return config.depth_scaled_init
             ? config.init_std / std::sqrt(2.0 * static_cast<double>(config.num_layers))
             : config.init_std;
}

}  // namespace

void ForEachRun(const ParameterSpec& spec,
                const std::function<void(int64_t local, int64_t full, int64_t count)>& body) {
  if (spec.sliced_dim < 0) return body(0, 0, spec.size());
  int64_t outer = 1, inner = 1;
  for (int i = 0; i < spec.sliced_dim; ++i) outer *= spec.full_shape[i];
  for (int i = spec.sliced_dim + 1; i < spec.full_shape.rank; ++i) inner *= spec.full_shape[i];
  const int64_t part = spec.full_shape[spec.sliced_dim] / spec.parts * inner;
  const int64_t count = spec.slice.size() * inner;
  if (count == 0) return;
  for (int64_t run = 0; run < outer * spec.parts; ++run) {
    body(run * count, run * part + spec.slice.begin * inner, count);
  }
}

ParameterSpec& ParameterLayout::Add(std::string name, Shape shape, InitKind init, double init_std,
                                    bool decays) {
  ParameterSpec spec;
  spec.name = std::move(name);
  spec.shape = spec.full_shape = shape;
  spec.offset = end_;
  spec.init = init;
  spec.init_std = init_std;
  spec.decays = decays;
  end_ += spec.size();
  by_name_[spec.name] = specs_.size();
  specs_.push_back(std::move(spec));
  return specs_.back();
}

// A matrix of `full` shape of which this rank holds some rows, those of each of `parts` parts.
void ParameterLayout::AddRows(const std::string& name, Shape full, Slice rows, double init_std,
                              int64_t parts) {
  ParameterSpec& spec = Add(name + ".weight", {parts * rows.size(), full[1]}, InitKind::kNormal,
                            init_std, /*decays=*/true);
  spec.full_shape = full;
  spec.sliced_dim = 0;
  spec.parts = parts;
  spec.slice = rows;
  spec.copies = TensorCopies::kNone;
}

void ParameterLayout::AddColumns(const std::string& name, Shape full, Slice columns,
                                 double init_std) {
  ParameterSpec& spec = Add(name + ".weight", {full[0], columns.size()}, InitKind::kNormal,
                            init_std, /*decays=*/true);
  spec.full_shape = full;
  spec.sliced_dim = 1;
  spec.slice = columns;
  spec.copies = TensorCopies::kNone;
}

void ParameterLayout::AddVector(const std::string& name, int64_t size, InitKind init) {
  Add(name, {size}, init, 0, /*decays=*/false);
}

void ParameterLayout::AddSlicedBias(const std::string& name, int64_t size, Slice slice) {
  ParameterSpec& spec = Add(name + ".bias", {slice.size()}, InitKind::kZero, 0, /*decays=*/false);
  spec.full_shape = {size};
  spec.sliced_dim = 0;
  spec.slice = slice;
  spec.copies = TensorCopies::kNone;
}

void ParameterLayout::EndUnit() {
  const int64_t multiple = part_.unit_multiple;
  end_ = (end_ + multiple - 1) / multiple * multiple;
  unit_begin_.push_back(end_);
}

ParameterLayout::ParameterLayout(const ModelConfig& config)
    : ParameterLayout(config, WholeModel(config)) {}

ParameterLayout::ParameterLayout(const ModelConfig& config, const ModelPart& part)
    : config_(config), part_(part) {
  for (const LayerRange& chunk : part.chunks) {
    for (int64_t layer = chunk.begin; layer < chunk.end; ++layer) layers_.push_back(layer);
  }
  const Shape table{config.vocab_size, config.hidden_size};
  const Slice vocab = SliceOf(config.vocab_size, part.tp, part.tp_rank);
  unit_begin_.push_back(0);
  for (const int64_t layer : layers_) AddExact(layer);
  EndUnit();
  // Where data-parallel ranks share units, these are as long on all tensor-parallel ranks: what
  // those hold alike then lies alike, and they share it alike.
  const int64_t longest = (config.vocab_size + part.tp - 1) / part.tp;
  const int64_t padding =
      part.unit_multiple > 1 ? (longest - vocab.size()) * config.hidden_size : 0;
  if (part.holds_embedding(config)) {
    AddRows("model.embed_tokens", table, vocab, config.init_std);
    end_ += padding;
  }
  EndUnit();
  for (const int64_t layer : layers_) {
    AddBlock(layer);
    EndUnit();
  }
  if (part.is_last) {
    if (config.final_norm_gain) {
      AddVector("model.norm.weight", config.hidden_size, InitKind::kOne);
    }
    if (!config.tie_embeddings) {
      AddRows("lm_head", table, vocab, config.init_std);
      end_ += padding;
    }
  }
  EndUnit();
}

// Parameters of position encodings. Their rounding errors are multiplied by positions, so ops read
// them unrounded wherever they round weights.
void ParameterLayout::AddExact(int64_t layer) {
  const ModelConfig& c = config_;
  const std::string prefix = LayerPrefix(layer);
  switch (c.kind(layer)) {
    case LayerKind::kSoftmax:
      break;
    case LayerKind::kLightning:
      if (c.uses_lrpe(layer)) {
        const Slice heads = QueryHeads(c.num_heads, part_);
        ParameterSpec& spec =
            Add(prefix + "token_mixer.lrpe.theta", {heads.size(), 1, c.head_size()},
                InitKind::kLrpeTheta, 0, /*decays=*/false);
        spec.full_shape = {c.num_heads, 1, c.head_size()};
        spec.sliced_dim = 0;
        spec.slice = heads;
        spec.copies = TensorCopies::kNone;
      }
      break;
    case LayerKind::kNormAttention:
    case LayerKind::kDiagAttention:
      AddVector(prefix + "token_mixer.urpe.theta", c.head_size() / 2, InitKind::kUrpeTheta);
      AddVector(prefix + "token_mixer.urpe.reflection", c.head_size(), InitKind::kUnitVector);
      specs_.back().trainable = false;
      break;
  }
}

void ParameterLayout::AddBlock(int64_t layer) {
  const ModelConfig& c = config_;
  const std::string prefix = LayerPrefix(layer);
  const int64_t width = c.hidden_size, ffn = c.intermediate_size, head = c.head_size();
  const int64_t q_width = c.num_heads * head, kv_width = c.kv_heads() * head;
  const auto columns_of = [head](Slice heads) {
    return Slice{heads.begin * head, heads.end * head};
  };
  const Slice q = columns_of(QueryHeads(c.num_heads, part_));
  const Slice units = SliceOf(ffn, part_.tp, part_.tp_rank);
  const double std = c.init_std, out_std = OutputStd(c);
  switch (c.kind(layer)) {
    case LayerKind::kSoftmax: {
      const Slice kv = columns_of(KeyValueHeads(c.kv_heads(), part_));
      const TensorCopies kv_copies =
          c.kv_heads() < part_.tp ? TensorCopies::kKeyValue : TensorCopies::kNone;
      AddVector(prefix + "input_layernorm.weight", width, InitKind::kOne);
      AddRows(prefix + "self_attn.q_proj", {q_width, width}, q, std);
      for (const char* name : {"self_attn.k_proj", "self_attn.v_proj"}) {
        AddRows(prefix + name, {kv_width, width}, kv, std);
        specs_.back().copies = kv_copies;
      }
      if (c.qkv_bias) {
        AddSlicedBias(prefix + "self_attn.q_proj", q_width, q);
        for (const char* name : {"self_attn.k_proj", "self_attn.v_proj"}) {
          AddSlicedBias(prefix + name, kv_width, kv);
          specs_.back().copies = kv_copies;
        }
      }
      if (c.qk_norm) {
        AddVector(prefix + "self_attn.q_norm.weight", head, InitKind::kOne);
        AddVector(prefix + "self_attn.k_norm.weight", head, InitKind::kOne);
      }
      AddColumns(prefix + "self_attn.o_proj", {width, q_width}, q, out_std);
      AddVector(prefix + "post_attention_layernorm.weight", width, InitKind::kOne);
      AddRows(prefix + "mlp.gate_proj", {ffn, width}, units, std);
      AddRows(prefix + "mlp.up_proj", {ffn, width}, units, std);
      AddColumns(prefix + "mlp.down_proj", {width, ffn}, units, out_std);
      break;
    }
    case LayerKind::kLightning:
      AddRows(prefix + "token_mixer.qkvu_proj", {4 * q_width, width}, q, std, /*parts=*/4);
      AddColumns(prefix + "token_mixer.out_proj", {width, q_width}, q, out_std);
      AddRows(prefix + "channel_mixer.l1", {ffn, width}, units, std);
      AddRows(prefix + "channel_mixer.l2", {ffn, width}, units, std);
      AddColumns(prefix + "channel_mixer.l3", {width, ffn}, units, out_std);
      break;
    case LayerKind::kNormAttention:
    case LayerKind::kDiagAttention:
      for (const char* name : {"q_proj", "k_proj", "v_proj"}) {
        AddRows(absl::StrCat(prefix, "token_mixer.", name), {q_width, width}, q, std);
      }
      for (const char* name : {"q_proj", "k_proj", "v_proj"}) {
        AddSlicedBias(absl::StrCat(prefix, "token_mixer.", name), q_width, q);
      }
      AddColumns(prefix + "token_mixer.out_proj", {width, q_width}, q, out_std);
      AddVector(prefix + "token_mixer.out_proj.bias", width, InitKind::kZero);
      AddRows(prefix + "channel_mixer.l1", {ffn, width}, units, std);
      AddRows(prefix + "channel_mixer.l2", {ffn, width}, units, std);
      AddSlicedBias(prefix + "channel_mixer.l1", ffn, units);
      AddSlicedBias(prefix + "channel_mixer.l2", ffn, units);
      AddColumns(prefix + "channel_mixer.l3", {width, ffn}, units, out_std);
      AddVector(prefix + "channel_mixer.l3.bias", width, InitKind::kZero);
      break;
  }
}

int64_t ParameterLayout::num_parameters() const {
  int64_t count = 0;
  for (const ParameterSpec& spec : specs_) count += spec.trainable ? spec.size() : 0;
  return count;
}

template <typename View>
View ParameterLayout::One(const View& unit, int unit_index, const std::string& name) const {
  return Stack(unit, unit_index, "", {name});
}

// One view over adjacent parameters, stacked along the first dimension; empty where there are none.
template <typename View>
View ParameterLayout::Stack(const View& unit, int unit_index, const std::string& prefix,
                            const std::vector<std::string>& names) const {
  const auto first = by_name_.find(prefix + names.front());
  if (first == by_name_.end() || unit.empty()) return View();
  const ParameterSpec& head = specs_[first->second];
  Shape shape = head.shape;
  int64_t end = head.offset + head.size();
  for (size_t i = 1; i < names.size(); ++i) {
    const ParameterSpec& next = specs_[by_name_.at(prefix + names[i])];
    EK_CHECK(next.offset == end) << names[i] << " does not follow " << names[i - 1];
    shape.dims[0] += next.shape[0];
    end += next.size();
  }
  const int64_t begin = head.offset - unit_begin_[static_cast<size_t>(unit_index)];
  return unit.Rows(begin, begin + shape.num_elements()).Reshape(shape);
}

template <typename View>
BlockViews<View> ParameterLayout::Block(int64_t local_layer, const View& unit,
                                        const View& exact) const {
  const int64_t number = layer(local_layer);
  const std::string prefix = LayerPrefix(number);
  const int index = UnitOfLayer(local_layer);
  const auto one = [&](const char* name) { return One(unit, index, prefix + name); };
  const auto stack = [&](const std::vector<std::string>& names) {
    return Stack(unit, index, prefix, names);
  };
  BlockViews<View> block;
  if (config_.kind(number) == LayerKind::kSoftmax) {
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
    return block;
  }
  if (config_.kind(number) == LayerKind::kLightning) {
    block.in_proj = one("token_mixer.qkvu_proj.weight");
    block.theta = One(exact, kExactUnit, prefix + "token_mixer.lrpe.theta");
    if (!block.theta.empty()) {
      block.theta = block.theta.Reshape({block.theta.dim(0), config_.head_size()});
    }
  } else {
    block.in_proj = stack(
        {"token_mixer.q_proj.weight", "token_mixer.k_proj.weight", "token_mixer.v_proj.weight"});
    block.in_proj_bias =
        stack({"token_mixer.q_proj.bias", "token_mixer.k_proj.bias", "token_mixer.v_proj.bias"});
    block.theta = One(exact, kExactUnit, prefix + "token_mixer.urpe.theta");
    block.reflection = One(exact, kExactUnit, prefix + "token_mixer.urpe.reflection");
  }
  block.out_proj = one("token_mixer.out_proj.weight");
  block.out_proj_bias = one("token_mixer.out_proj.bias");
  block.mlp_pair = stack({"channel_mixer.l1.weight", "channel_mixer.l2.weight"});
  block.mlp_pair_bias = stack({"channel_mixer.l1.bias", "channel_mixer.l2.bias"});
  block.mlp_down = one("channel_mixer.l3.weight");
  block.mlp_down_bias = one("channel_mixer.l3.bias");
  return block;
}

template <typename View>
View ParameterLayout::Embedding(const View& unit) const {
  return One(unit, kEmbeddingUnit, "model.embed_tokens.weight");
}

template <typename View>
HeadViews<View> ParameterLayout::Head(const View& head, const View& embedding) const {
  return {One(head, head_unit(), "model.norm.weight"),
          config_.tie_embeddings ? Embedding(embedding) : One(head, head_unit(), "lm_head.weight")};
}

template BlockViews<TensorView> ParameterLayout::Block(int64_t, const TensorView&,
                                                       const TensorView&) const;
template BlockViews<ConstTensorView> ParameterLayout::Block(int64_t, const ConstTensorView&,
                                                            const ConstTensorView&) const;
template TensorView ParameterLayout::Embedding(const TensorView&) const;
template ConstTensorView ParameterLayout::Embedding(const ConstTensorView&) const;
template HeadViews<TensorView> ParameterLayout::Head(const TensorView&, const TensorView&) const;
template HeadViews<ConstTensorView> ParameterLayout::Head(const ConstTensorView&,
                                                          const ConstTensorView&) const;

}  // namespace evenkeel
