// The parameters of a model, or of a rank's part of one, laid end to end in one flat buffer.
// Weights, gradients and optimizer state share the layout, so the optimizer, the gradient reduction
// and the checkpoint walk ranges of a flat array and never know what a layer is.
//
// Parameters carry the names and shapes Hugging Face uses (Llama, Qwen2, Qwen3; OpenNLPLab's for
// TransNormerLLM). What is multiplied in one product - q, k and v; gate and up - is adjacent in the
// buffer, so the fused weight is a view over several parameters and is never copied or renamed.
//
// The buffer consists of units: what is needed, and becomes final, at one time. Data-parallel ranks
// share the state of a model unit by unit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "models/model_config.h"
#include "models/model_part.h"
#include "runtime/base/row_range.h"
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

// Which tensor-parallel ranks hold the same values of a parameter, and each a part of its gradient.
enum class TensorCopies {
  kNone,      // this rank alone
  kKeyValue,  // the ranks that share a key/value head
  kAll,       // all
};

struct ParameterSpec {
  std::string name;
  Shape shape;         // of this rank's slice
  int64_t offset = 0;  // in elements of the flat buffer
  InitKind init = InitKind::kNormal;
  double init_std = 0;
  bool decays = true;     // weight decay applies (matrices), or not (norms, biases, positions)
  bool trainable = true;  // false: kept in checkpoints, never updated (Urpe's reflection)
  // Where the slice lies. Dimension `sliced_dim` of the whole tensor consists of `parts` equal
  // parts; the slice takes [slice.begin, slice.end) of each. -1: the slice is the whole.
  Shape full_shape;
  int sliced_dim = -1;
  int64_t parts = 1;
  Slice slice;
  TensorCopies copies = TensorCopies::kAll;

  int64_t size() const { return shape.num_elements(); }
};

// Calls body(owned, first, count) for what of elements [begin, begin + count) of the flat buffer is
// in `owned`, ascending: [first, first + count) of the buffer is [owned, ...) of what is owned.
template <typename Body>
void ForEachOwnedRun(const std::vector<RowRange>& owned, int64_t begin, int64_t count,
                     const Body& body) {
  auto range = std::upper_bound(
      owned.begin(), owned.end(), begin,
      [](int64_t at, const RowRange& each) { return at < each.from + each.count; });
  for (; range != owned.end() && range->from < begin + count; ++range) {
    const int64_t first = std::max(begin, range->from);
    const int64_t end = std::min(begin + count, range->from + range->count);
    if (first < end) body(range->to + first - range->from, first, end - first);
  }
}

// Calls body(local, full, count) for each run of elements: [local, local + count) of the slice is
// [full, full + count) of the whole tensor.
void ForEachRun(const ParameterSpec& spec,
                const std::function<void(int64_t local, int64_t full, int64_t count)>& body);

// Views of one layer's parameters, or of their gradients. Empty where the kind of layer has none.
// C hidden size; the others are this rank's: H heads, G key/value heads, D head size, F
// intermediate size.
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
struct HeadViews {
  View norm;  // [C] or empty
  View head;  // [V, C]; the embedding where tied. V: this rank's slice of the vocabulary
};

// The names, shapes and places of all parameters of `config`, or of a part of the model. Layers are
// counted as the rank holds them: chunk by chunk from 0.
class ParameterLayout {
 public:
  explicit ParameterLayout(const ModelConfig& config);
  ParameterLayout(const ModelConfig& config, const ModelPart& part);

  const std::vector<ParameterSpec>& specs() const { return specs_; }
  const ModelPart& part() const { return part_; }
  int64_t num_elements() const { return unit_begin_.back(); }
  // Parameters excluding what is not trained.
  int64_t num_parameters() const;

  // Units in the order of the buffer: parameters of position encodings, which ops read unrounded;
  // the embedding; each layer; final norm and head. [num_units + 1], any may be empty.
  const std::vector<int64_t>& unit_begin() const { return unit_begin_; }
  static constexpr int kExactUnit = 0;
  static constexpr int kEmbeddingUnit = 1;
  static int UnitOfLayer(int64_t local_layer) { return 2 + static_cast<int>(local_layer); }
  int head_unit() const { return static_cast<int>(unit_begin_.size()) - 2; }

  int64_t num_layers() const { return static_cast<int64_t>(layers_.size()); }
  // The layer's number in the model.
  int64_t layer(int64_t local_layer) const { return layers_[static_cast<size_t>(local_layer)]; }

  // Cut views out of flat buffers that hold one unit: its weights, or their gradients. `exact`
  // holds kExactUnit.
  template <typename View>
  BlockViews<View> Block(int64_t local_layer, const View& unit, const View& exact) const;
  template <typename View>
  View Embedding(const View& unit) const;
  template <typename View>
  HeadViews<View> Head(const View& head_unit, const View& embedding_unit) const;

  // Fills a flat buffer of the host, or of it what a rank owns, with initial weights: a function of
  // (seed, parameter name, element of the whole tensor) alone.
  void Initialize(ThreadPool& pool, uint64_t seed, TensorView flat) const;
  void Initialize(ThreadPool& pool, uint64_t seed, const std::vector<RowRange>& owned,
                  TensorView owned_flat) const;
  // The same on the context's device: a GPU draws the matrices itself, which takes a host seconds
  // for a billion numbers. Does not wait for it.
  absl::Status InitializeOnDevice(const OpContext& context, uint64_t seed,
                                  const std::vector<RowRange>& owned, TensorView owned_flat) const;

 private:
  ParameterSpec& Add(std::string name, Shape shape, InitKind init, double init_std, bool decays);
  void AddRows(const std::string& name, Shape full, Slice rows, double init_std, int64_t parts = 1);
  void AddColumns(const std::string& name, Shape full, Slice columns, double init_std);
  void AddVector(const std::string& name, int64_t size, InitKind init);
  void AddSlicedBias(const std::string& name, int64_t size, Slice slice);
  void AddExact(int64_t layer);
  void AddBlock(int64_t layer);
  void EndUnit();
  template <typename View>
  View One(const View& unit, int unit_index, const std::string& name) const;
  template <typename View>
  View Stack(const View& unit, int unit_index, const std::string& prefix,
             const std::vector<std::string>& names) const;

  ModelConfig config_;
  ModelPart part_;
  std::vector<int64_t> layers_;
  std::vector<ParameterSpec> specs_;
  std::map<std::string, size_t> by_name_;
  std::vector<int64_t> unit_begin_;
  int64_t end_ = 0;  // of what was added so far
};

// Calls body(spec, begin, count) for what a rank owns of each parameter: elements [begin, begin +
// count) of its owned buffers (parallel/parameter_store.h), ascending.
template <typename Body>
void ForEachOwned(const ParameterLayout& layout, const std::vector<RowRange>& owned,
                  const Body& body) {
  for (const ParameterSpec& spec : layout.specs()) {
    ForEachOwnedRun(owned, spec.offset, spec.size(),
                    [&](int64_t begin, int64_t, int64_t count) { body(spec, begin, count); });
  }
}

}  // namespace evenkeel
