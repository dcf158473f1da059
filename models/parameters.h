// The parameters of a model, laid end to end in one flat buffer. Weights, gradients and optimizer
// state share the layout, so the optimizer, the gradient reduction and the checkpoint walk ranges
// of a flat array and never know what a layer is.
//
// Parameters carry the names and shapes Hugging Face uses (Llama, Qwen2, Qwen3; OpenNLPLab's for
// TransNormerLLM). What is multiplied in one product - q, k and v; gate and up - is adjacent in the
// buffer, so the fused weight is a view over several parameters and is never copied or renamed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/model_config.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

enum class InitKind {
  kNormal,  // Normal(0, std)
  kZero,
  kOne,
  kLrpeTheta,   // 10000^(-2 (h D + j) / (H D))
  kUrpeTheta,   // 10000^(-2 j / D)
  kUnitVector,  // Normal, scaled to length one
};

struct ParameterSpec {
  std::string name;
  Shape shape;
  int64_t offset = 0;  // in elements of the flat buffer
  InitKind init = InitKind::kNormal;
  double init_std = 0;
  bool decays = true;     // weight decay applies (matrices), or not (norms, biases, positions)
  bool trainable = true;  // false: kept in checkpoints, never updated (Urpe's reflection)

  int64_t size() const { return shape.num_elements(); }
};

// Views of one layer's parameters, or of their gradients. Empty where the kind of layer has none.
// C hidden size, H heads, G key/value heads, D head size, F intermediate size.
template <typename View>
struct BlockViews {
  View attention_norm;  // [C] gain of the norm before attention
  View in_proj;       // [P, C]: q, k, v (and u) one below the other; P = (H + 2 G) D, or 3 or 4 H D
  View in_proj_bias;  // [P]
  View q_norm, k_norm;  // [D]
  View theta;           // LRPE [H, D]; Urpe [D / 2]
  View reflection;      // [D], a unit vector (Urpe)
  View out_proj;        // [C, H D]
  View out_proj_bias;   // [C]
  View mlp_norm;        // [C]
  View mlp_pair;        // [2 F, C]: gate over up (first over second)
  View mlp_pair_bias;   // [2 F]
  View mlp_down;        // [C, F]
  View mlp_down_bias;   // [C]
};

template <typename View>
struct ModelViews {
  View embedding;  // [V, C]
  std::vector<BlockViews<View>> blocks;
  View final_norm;  // [C] or empty
  View head;        // [V, C]; the embedding where tied
};

// The names, shapes and places of all parameters of `config`.
class ParameterLayout {
 public:
  explicit ParameterLayout(const ModelConfig& config);

  const std::vector<ParameterSpec>& specs() const { return specs_; }
  int64_t num_elements() const { return num_elements_; }
  // Parameters excluding what is not trained.
  int64_t num_parameters() const;
  // The range of the flat buffer that belongs to `layer`.
  int64_t layer_begin(int64_t layer) const { return layer_begin_[static_cast<size_t>(layer)]; }
  int64_t layer_end(int64_t layer) const { return layer_begin_[static_cast<size_t>(layer) + 1]; }

  // Cuts views out of a flat [num_elements] buffer. With `exact`, the same values unrounded, the
  // parameters of position encodings are views of that: positions multiply their rounding errors.
  ModelViews<ConstTensorView> Views(ConstTensorView flat, ConstTensorView exact) const;
  ModelViews<ConstTensorView> Views(ConstTensorView flat) const { return Views(flat, flat); }
  ModelViews<TensorView> Views(TensorView flat) const;

  // Fills a flat buffer of the host with initial weights: a function of (seed, parameter name,
  // element) alone.
  void Initialize(ThreadPool& pool, uint64_t seed, TensorView flat) const;

 private:
  template <typename View>
  ModelViews<View> MakeViews(View flat, View exact) const;
  void Add(std::string name, Shape shape, InitKind init, double init_std, bool decays);
  void AddLinear(const std::string& name, int64_t rows, int64_t columns, double init_std);
  void AddBlock(int64_t layer);

  ModelConfig config_;
  std::vector<ParameterSpec> specs_;
  std::vector<int64_t> layer_begin_;
  int64_t num_elements_ = 0;
};

}  // namespace evenkeel
