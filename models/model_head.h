// Both ends of a model: the embedding, and final norm, head and loss. With tensor parallelism each
// rank has a slice of the vocabulary (Megatron-LM's vocabulary-parallel embedding and
// cross-entropy).
#pragma once

#include "models/model_config.h"
#include "models/parameters.h"
#include "models/stage_pass.h"
#include "runtime/ops/mirrored_array.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Fills x [T, C] with the embeddings the first block sees, on one rank.
void EmbedTokens(const OpContext& context, const ModelConfig& config, ConstTensorView table,
                 Indices tokens, TensorView x);
// Fills pass.x [S, C] with what the first block sees. table [V, C]: this rank's slice.
void EmbedForward(const OpContext& context, const ModelConfig& config, const ModelPart& part,
                  ConstTensorView table, StagePass& pass);
// Adds to dtable [V, C] from pass.dx, which is used up.
void EmbedBackward(const OpContext& context, const ModelConfig& config, TensorView dtable,
                   StagePass& pass);

// The losses of pass.y's tokens added to loss_sum [1]; gradients of loss_scale times their sum:
// that of pass.y in pass.dx, the parameters' added to `gradients`.
void HeadForwardBackward(const OpContext& context, const ModelConfig& config, const ModelPart& part,
                         const HeadViews<ConstTensorView>& weights,
                         const HeadViews<TensorView>& gradients, double loss_scale,
                         TensorView loss_sum, StagePass& pass);
// losses [T] of all tokens that core attention sees, alike on tensor-parallel ranks.
void HeadForward(const OpContext& context, const ModelConfig& config, const ModelPart& part,
                 const HeadViews<ConstTensorView>& weights, const StagePass& pass,
                 TensorView losses);
// logits [T, V] of the whole vocabulary on one rank, from y [T, C].
void HeadLogits(const OpContext& context, const ModelConfig& config,
                const HeadViews<ConstTensorView>& weights, ConstTensorView y, TensorView logits);

// [T], of the dtype that cross-entropy writes.
TensorView AllocateLosses(const OpContext& context, int64_t tokens);

// Rows of logits that exist at once, however large the vocabulary (of this rank).
int64_t LogitsChunk(Device device, int64_t vocab_size);

}  // namespace evenkeel
