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

// On the CPU the weights are of the dtype that ops compute in. On a GPU they are float32, what the
// optimizer updates and checkpoints hold, and ops multiply with a rounded copy in bf16; angles of
// position encodings are always read from the float32 weights.
class Model {
 public:
  // Allocates the weights (zero) on the context's device and, if asked, the gradients. Fails with
  // kInvalidArgument if the device has no kernels for the config's sizes.
  static absl::StatusOr<Model> Create(const OpContext& context, const ModelConfig& config,
                                      bool with_gradients, MemoryTracker& tracker);

  const ModelConfig& config() const { return config_; }
  const ParameterLayout& layout() const { return layout_; }
  const std::vector<BlockSpec>& block_specs() const { return specs_; }
  // [layout().num_elements()], of the context's wide dtype. Who writes them calls UpdateCopy.
  Tensor& weights() { return weights_; }
  const Tensor& weights() const { return weights_; }
  // The rounded copy, in the context's dtype; empty where ops read the weights themselves.
  TensorView copy() { return copy_.view(); }
  void UpdateCopy(const OpContext& context);
  Tensor& gradients() { return gradients_; }
  const Tensor& gradients() const { return gradients_; }
  // What ops read: the copy, or the weights where there is none.
  ModelViews<ConstTensorView> weight_views() const;

  // Runs forward and backward over one packed batch, adds to the gradients those of
  // loss_scale * (sum of the losses of all tokens with a target), and adds the sum of the losses
  // (natural log, not scaled) to loss_sum [1] (float64, on the context's device). An empty batch
  // only calls the sink.
  void ForwardBackward(const OpContext& context, const PackedBatch& batch, double loss_scale,
                       Recompute recompute, const GradientSink& sink, TensorView loss_sum);

  // Fills losses [T], on the host, with the loss of each token; 0 where there is no target. Waits
  // for a GPU, and fails with what went wrong there.
  absl::Status TokenLosses(const OpContext& context, const PackedBatch& batch,
                           absl::Span<double> losses) const;

  // Fills logits [T, V], of the context's dtype and device. For tests and short inputs.
  void Logits(const OpContext& context, const PackedBatch& batch, TensorView logits) const;

 private:
  Model(const ModelConfig& config, ParameterLayout layout);

  ModelConfig config_;
  ParameterLayout layout_;
  std::vector<BlockSpec> specs_;
  Tensor weights_;
  Tensor copy_;
  Tensor gradients_;
};

// Fills x [T, C] with the embeddings the first block sees.
void EmbedTokens(const OpContext& context, const ModelConfig& config,
                 const ModelViews<ConstTensorView>& weights, Indices tokens, TensorView x);

// Builds what the layers need to know about the tokens. The rotary tables, and what a GPU reads,
// live in the context's arena; cu_seqlens and positions are borrowed. `backward`: for training.
TokenLayout MakeTokenLayout(const OpContext& context, const ModelConfig& config,
                            absl::Span<const int64_t> cu_seqlens,
                            absl::Span<const int64_t> positions, bool backward);

// Rows of logits that exist at once, however large the vocabulary.
int64_t LogitsChunk(Device device, int64_t vocab_size);

}  // namespace evenkeel
