// A transformer block as three pieces, each with a forward and a backward function:
//   PreAttention   norm, input projection, position encoding    -> q, k, v (and the gate u)
//   core attention over the documents of the batch              -> out
//   PostAttention  output norm and gate, output projection, feed-forward -> the next layer's input
// The outer two work token by token and know nothing of documents or of other ranks; only the
// middle one is exchanged by the attention strategy.
//
// The outer pieces walk the tokens in chunks: on the CPU they stay in the processor's caches, so
// the only passes over memory are those over what is saved; on a GPU they bound the workspace.
//
// Shapes: T tokens of the packed batch, C hidden size, H query heads, G key/value heads, D head
// size, P columns of the input projection, F intermediate size.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "attention/attention_plan.h"
#include "models/block_spec.h"
#include "models/parameters.h"
#include "runtime/ops/mirrored_array.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Rows of the outer pieces' chunks: large enough for matrix products at full speed; on the CPU
// small enough that the widest intermediate (2 F columns) stays in the shared cache.
constexpr int64_t TokenChunk(Device device) {
  return device == Device::kCpu ? 512 : 32768;
}

// Which activations the forward pass keeps for the backward pass, and which are computed again.
enum class Recompute {
  kNone,   // keep all
  kMlp,    // keep the attention's; compute the feed-forward's again
  kLayer,  // keep each layer's input alone
};

// What all layers know about the tokens of a batch. Movable only: plans borrow the lists.
struct TokenLayout {
  TokenLayout() = default;
  TokenLayout(TokenLayout&&) = default;
  TokenLayout& operator=(TokenLayout&&) = default;

  Positions positions;                    // [T], from 0 at each document
  SequencePlan sequences;                 // documents, for lightning layers
  std::vector<AttentionTask> task_list;   // documents, for softmax layers
  std::vector<AttentionTask> block_list;  // blocks, for diag_attention layers
  TaskPlan tasks, block_tasks;            // the same, planned
  ConstTensorView rope_cos, rope_sin;     // [T, D / 2], of the wide dtype
};

// What one layer keeps for its backward pass. Empty views were not kept.
struct BlockActivations {
  TensorView x;      // [T, C] input
  TensorView proj;   // [T, P] input projection; q and k rotated in place where they are not copied
  TensorView out;    // [T, H D] core attention's output
  TensorView lse;    // [T, H], of the wide dtype
  TensorView x_mid;  // [T, C] after attention
  TensorView pair;   // [T, 2 F] both branches of the feed-forward
  // Norms of x and x_mid, what enters the projections: kept on a GPU, where reading them costs half
  // of computing them again. On the CPU they would cost passes over memory.
  TensorView normed, normed_mid;  // [T, C]
};

// Inputs of core attention, or their gradients.
struct CoreTensors {
  TensorView q;  // [T, H, Dq], Dq = D, or 2 D with LRPE
  TensorView k;  // [T, G, Dq]
  TensorView v;  // [T, G, D]
};

// proj [T, P] = norm(x) W + b, with q and k rotated in place unless spec.copies_qk(). normed [T, C]
// receives norm(x), or is empty.
void PreAttentionForward(const OpContext& context, const BlockSpec& spec,
                         const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
                         ConstTensorView x, TensorView normed, TensorView proj);

// Returns q, k, v for core attention: views into proj, or, where q and k are normalised, activated
// or widened first, tensors allocated in the context's arena.
CoreTensors MakeCoreInputs(const OpContext& context, const BlockSpec& spec,
                           const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
                           TensorView proj);

// Core attention within this rank. out [T, H D]; lse [T, H] where the kind has one.
void LocalCoreForward(const OpContext& context, const BlockSpec& spec, const TokenLayout& layout,
                      const CoreTensors& inputs, TensorView out, TensorView lse);
void LocalCoreBackward(const OpContext& context, const BlockSpec& spec, const TokenLayout& layout,
                       const CoreTensors& inputs, ConstTensorView out, ConstTensorView lse,
                       ConstTensorView dout, const CoreTensors& gradients);

// y [T, C] = the block's output. x_mid, normed_mid and pair are filled where they are not empty.
void PostAttentionForward(const OpContext& context, const BlockSpec& spec,
                          const BlockViews<ConstTensorView>& weights, ConstTensorView x,
                          ConstTensorView proj, ConstTensorView out, TensorView x_mid,
                          TensorView normed_mid, TensorView pair, TensorView y);

// Takes the gradient of y in dx [T, C] and leaves there the gradient that reaches x past attention
// (the residual path). Writes dout [T, H D] and the gate's columns of dproj [T, P]; adds to
// `gradients`. What `saved` lacks of x_mid and pair is computed again.
void PostAttentionBackward(const OpContext& context, const BlockSpec& spec,
                           const BlockViews<ConstTensorView>& weights,
                           const BlockViews<TensorView>& gradients, const BlockActivations& saved,
                           TensorView dx, TensorView dout, TensorView dproj);

// Turns the gradients of core attention's inputs into the q, k and v columns of dproj. `core` and
// `core_gradients` may be views into proj and dproj.
void CoreInputsBackward(const OpContext& context, const BlockSpec& spec,
                        const BlockViews<ConstTensorView>& weights,
                        const BlockViews<TensorView>& gradients, const TokenLayout& layout,
                        ConstTensorView proj, const CoreTensors& core,
                        const CoreTensors& core_gradients, TensorView dproj);

// dx [T, C] += the gradient through the projection and the norm; adds to `gradients`. An empty
// normed is computed again.
void PreAttentionBackward(const OpContext& context, const BlockSpec& spec,
                          const BlockViews<ConstTensorView>& weights,
                          const BlockViews<TensorView>& gradients, ConstTensorView x,
                          ConstTensorView normed, ConstTensorView dproj, TensorView dx);

// Runs the three pieces. Allocates in the context's arena what `recompute` keeps, in `saved`, whose
// x the caller has set; everything else is given back. y [T, C].
void BlockForward(const OpContext& context, const BlockSpec& spec,
                  const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
                  Recompute recompute, BlockActivations& saved, TensorView y);

// dx [T, C]: gradient of y on entry, of x on return. Adds to `gradients`.
void BlockBackward(const OpContext& context, const BlockSpec& spec,
                   const BlockViews<ConstTensorView>& weights,
                   const BlockViews<TensorView>& gradients, const TokenLayout& layout,
                   const BlockActivations& saved, TensorView dx);

}  // namespace evenkeel
