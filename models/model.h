// A language model, or a rank's part of one: embedding, blocks, final norm, head and cross-entropy,
// forward and backward as plain function calls.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "models/gradient_sum.h"
#include "models/model_config.h"
#include "models/parameters.h"
#include "models/stage_pass.h"
#include "parallel/mesh_comms.h"
#include "parallel/parameter_store.h"
#include "runtime/data/packed_batch.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Which part of a model a rank holds, and with whom. The default: all of it, alone.
struct ModelSetup {
  ModelPart part;  // without chunks: the whole model
  ModelAxes axes;
  ContextStrategy context;
  ShardingStage sharding = ShardingStage::kNone;
  int64_t bucket_elements = int64_t{1} << 20;
  bool with_gradients = true;
  bool fp8 = false;  // products of the blocks in FP8 (runtime/ops/fp8.h); the head's stay in bf16
};

// On the CPU ops compute with the weights that the optimizer updates. On a GPU those are float32,
// and ops multiply with a rounded copy in bf16; angles of position encodings are always read from
// the float32 weights.
//
// All ranks of a part's axes make the same calls. Errors of communication go to the axes' log.
class Model {
 public:
  // Allocates the weights (zero) on the context's device and, if asked, the gradients. Fails with
  // kInvalidArgument if the device has no kernels for the sizes, or no FP8 where it is wanted.
  static absl::StatusOr<Model> Create(const OpContext& context, const ModelConfig& config,
                                      const ModelSetup& setup, MemoryTracker& tracker);
  // The whole model, alone.
  static absl::StatusOr<Model> Create(const OpContext& context, const ModelConfig& config,
                                      bool with_gradients, MemoryTracker& tracker);

  const ModelConfig& config() const { return config_; }
  const ParameterLayout& layout() const { return layout_; }
  const ModelAxes& axes() const { return setup_.axes; }
  int num_chunks() const { return static_cast<int>(layout_.part().chunks.size()); }
  const std::vector<BlockSpec>& block_specs() const { return specs_; }
  // Null without ModelSetup::fp8. Places are those of the whole model, whatever part a rank holds:
  // who trains begins steps with BeginStep, and hands the largest values over all ranks to Learn.
  Fp8Scales* fp8_scales() { return fp8_scales_.get(); }

  // What this rank owns of the weights, and their gradients (parallel/parameter_store.h): all of
  // layout(), unless data-parallel ranks share. Who writes weights calls PublishWeights.
  ParameterStore& store() { return store_; }
  const ParameterStore& store() const { return store_; }
  Tensor& weights() { return store_.master(); }
  const Tensor& weights() const { return store_.master(); }
  Tensor& gradients() { return store_.gradients(); }
  const Tensor& gradients() const { return store_.gradients(); }
  void PublishWeights(const OpContext& context) { store_.PublishWeights(context, false); }

  // Starts a pass of a micro-batch (which must outlive it) through chunk `chunk`. Fills pass.x if
  // the model begins with this chunk; otherwise the caller fills it before the forward pass. Ranks
  // that share parameters make equally many passes: one without tokens only takes part.
  void BeginPass(const OpContext& context, int chunk, const PackedBatch& batch, bool backward,
                 StagePass& pass);
  // Fills pass.y.
  void Forward(const OpContext& context, int chunk, Recompute recompute, StagePass& pass);
  // From the gradient of y in pass.dx to that of x, adding to the gradients of the parameters those
  // of loss_scale * (sum of the losses of all tokens with a target). If the model ends with this
  // chunk, the pass begins with head and loss, and the sum of the losses of this rank's tokens
  // (natural log, not scaled) is added to loss_sum [1] (float64, on the context's device).
  // `is_last`: no other micro-batch follows in this chunk, so its gradients are final.
  void Backward(const OpContext& context, int chunk, double loss_scale, bool is_last,
                TensorView loss_sum, StagePass& pass);

  // What Backward does before and after the layers.
  void BeginBackward(const OpContext& context, int chunk, double loss_scale, bool is_last,
                     TensorView loss_sum, StagePass& pass);
  void FinishBackward(const OpContext& context, int chunk, bool is_last, StagePass& pass);

  // All of the above for one chunk that is the whole model. `is_last` as above.
  void ForwardBackward(const OpContext& context, const PackedBatch& batch, double loss_scale,
                       Recompute recompute, bool is_last, TensorView loss_sum);
  // Waits until the gradients that this rank owns are those of all ranks' tokens, and adds the sum
  // of the squares of the whole model's gradients to sum_of_squares [1] (float64).
  void FinishGradients(const OpContext& context, TensorView sum_of_squares);
  // In place of an update: forgets the gradients.
  void DropGradients(const OpContext& context);

  // A forward pass of one chunk that keeps nothing: fills pass.y, which lives in the arena.
  void ForwardOnly(const OpContext& context, int chunk, StagePass& pass);
  // Fills losses [tokens of this rank], on the host, from pass.y of the last chunk; 0 where there
  // is no target. Waits for a GPU, and fails with what went wrong there.
  absl::Status ReadLosses(const OpContext& context, const StagePass& pass,
                          absl::Span<double> losses);

  // For the whole model, alone: losses [T] of a batch, and logits [T, V], of the context's dtype
  // and device (for tests and short inputs).
  absl::Status TokenLosses(const OpContext& context, const PackedBatch& batch,
                           absl::Span<double> losses);
  void Logits(const OpContext& context, const PackedBatch& batch, TensorView logits);

  // Parameters as ops read them, valid until their units are released (store().ReleaseWeights),
  // which only ranks that share parameters need to do.
  ConstTensorView AcquireEmbedding(const OpContext& context);
  BlockViews<ConstTensorView> AcquireBlock(const OpContext& context, int64_t local_layer);
  HeadViews<ConstTensorView> AcquireHead(const OpContext& context);
  void PrefetchLayer(const OpContext& context, int64_t local_layer);
  // The chunk's layers, counted as this rank holds them.
  LayerRange LocalLayers(int chunk) const;

 private:
  Model(const ModelConfig& config, const ModelSetup& setup, ParameterLayout layout);

  absl::Status AddFp8Scales(const OpContext& context, MemoryTracker& tracker);
  bool begins(int chunk) const { return layout_.part().is_first && chunk == 0; }
  bool ends(int chunk) const { return layout_.part().is_last && chunk + 1 == num_chunks(); }
  void LossBackward(const OpContext& context, double loss_scale, TensorView loss_sum,
                    StagePass& pass);
  void ReleaseHead();

  ModelConfig config_;
  ModelSetup setup_;
  ParameterLayout layout_;
  std::vector<BlockSpec> specs_;  // of this rank's layers
  std::unique_ptr<Fp8Scales> fp8_scales_;
  ParameterStore store_;
  GradientSum gradient_sum_;
};

}  // namespace evenkeel
