// A whole language model: embedding, blocks, final norm, head and cross-entropy, forward and
// backward as plain function calls.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "models/block.h"
#include "models/model_config.h"
#include "models/parameters.h"
#include "runtime/data/packed_batch.h"
#include "runtime/ops/op_context.h"
#include "runtime/tensor/tensor.h"

namespace evenkeel {

// Called during the backward pass when the gradients of a range [begin, end) of the flat buffer are
// final. Ranges come in descending order, each ending where the one before began, and together
// cover the buffer.
using GradientSink = std::function<void(int64_t begin, int64_t end)>;

class Model {
 public:
  // Allocates the weights (uninitialised values are zero) and, if asked, the gradients.
  static absl::StatusOr<Model> Create(const ModelConfig& config, DType dtype, bool with_gradients,
                                      MemoryTracker& tracker);

  const ModelConfig& config() const { return config_; }
  const ParameterLayout& layout() const { return layout_; }
  const std::vector<BlockSpec>& block_specs() const { return specs_; }
  Tensor& weights() { return weights_; }
  const Tensor& weights() const { return weights_; }
  Tensor& gradients() { return gradients_; }
  const Tensor& gradients() const { return gradients_; }
  ModelViews<ConstTensorView> weight_views() const { return layout_.Views(weights_.view()); }

  // Runs forward and backward over one packed batch and adds to the gradients those of
  // loss_scale * (sum of the losses of all tokens with a target). Returns the sum of the losses
  // (natural log, not scaled). An empty batch only calls the sink.
  double ForwardBackward(const OpContext& context, const PackedBatch& batch, double loss_scale,
                         Recompute recompute, const GradientSink& sink);

  // Fills losses [T] with the loss of each token; 0 where there is no target.
  void TokenLosses(const OpContext& context, const PackedBatch& batch,
                   absl::Span<double> losses) const;

  // Fills logits [T, V]. For tests and short inputs.
  void Logits(const OpContext& context, const PackedBatch& batch, TensorView logits) const;

 private:
  Model(const ModelConfig& config, ParameterLayout layout);

  ModelConfig config_;
  ParameterLayout layout_;
  std::vector<BlockSpec> specs_;
  Tensor weights_;
  Tensor gradients_;
};

// Fills x [T, C] with the embeddings the first block sees.
void EmbedTokens(const OpContext& context, const ModelConfig& config,
                 const ModelViews<ConstTensorView>& weights, absl::Span<const int32_t> tokens,
                 TensorView x);

// Builds what the layers need to know about the tokens. The rotary tables live in the context's
// arena; cu_seqlens and positions are borrowed.
TokenLayout MakeTokenLayout(const OpContext& context, const ModelConfig& config,
                            absl::Span<const int64_t> cu_seqlens,
                            absl::Span<const int64_t> positions);

}  // namespace evenkeel
