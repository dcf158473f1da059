// A transformer block as three pieces, each with a forward and a backward function:
//   PreAttention   norm, input projection, position encoding    -> q, k, v (and the gate u)
//   core attention over the documents of the batch              -> out
//   PostAttention  output norm and gate, output projection, feed-forward -> the next layer's input
// The outer two work token by token and know nothing of documents or of other ranks; only the
// middle one is exchanged by the attention strategy.
//
// The outer pieces walk the tokens in chunks: on the CPU they stay in the processor's caches, so
// the only passes over memory are those over what is saved; on a GPU they bound the workspace; and
// with tensor parallelism one chunk's rows travel while another's are multiplied.
//
// Shapes: T tokens of the packed batch that this rank's core attention sees; S of them whose stream
// this rank holds (parallel/token_shards.h; S = T without tensor parallelism); C hidden size. This
// rank's share of: H query heads, G key/value heads, P columns of the input projection, F
// intermediate size. D head size.
#pragma once

#include <cstdint>

#include "models/block_spec.h"
#include "models/core_attention.h"
#include "models/parameters.h"
#include "models/token_layout.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Which activations the forward pass keeps for the backward pass, and which are computed again.
enum class Recompute {
  kNone,             // keep all
  kMlp,              // keep the attention's; compute the feed-forward's again
  kAllButAttention,  // keep each layer's input and what core attention leaves (CoreSaved)
  kLayer,            // keep each layer's input alone; where attention is pooled as the one before
};

inline bool ComputesProjectionAgain(Recompute recompute) {
  return recompute >= Recompute::kAllButAttention;
}

// What one layer keeps for its backward pass. Empty views were not kept.
struct BlockActivations {
  TensorView x;      // [S, C] input
  TensorView proj;   // [T, P] input projection; q and k rotated in place where they are not copied
  CoreSaved core;    // core attention's output and what else its backward pass wants
  TensorView x_mid;  // [S, C] after attention
  TensorView pair;   // [T, 2 F] both branches of the feed-forward
  // Norms of x and x_mid, what enters the projections: kept on a GPU, where reading them costs half
  // of computing them again. On the CPU they would cost passes over memory.
  TensorView normed, normed_mid;  // [S, C]
};

// proj [T, P] = norm(x) W + b, with q and k rotated in place unless spec.copies_qk(). x [S, C];
// normed [S, C] receives norm(x), or is empty.
void PreAttentionForward(const OpContext& context, const BlockSpec& spec,
                         const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
                         ConstTensorView x, TensorView normed, TensorView proj);

// Returns q, k, v for core attention: views into proj, or, where q and k are normalised, activated
// or widened first, tensors allocated in the context's arena.
CoreTensors MakeCoreInputs(const OpContext& context, const BlockSpec& spec,
                           const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
                           TensorView proj);

// y [S, C] = the block's output, from saved.x, proj and core. saved.x_mid, normed_mid and pair are
// filled where they are not empty.
void PostAttentionForward(const OpContext& context, const BlockSpec& spec,
                          const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
                          const BlockActivations& saved, TensorView y);

// Takes the gradient of y in dx [S, C] and leaves there the gradient that reaches x past attention
// (the residual path). Writes dout [T, H D] and the gate's columns of dproj [T, P]; adds to
// `gradients`. What `saved` lacks of x_mid and pair is computed again.
void PostAttentionBackward(const OpContext& context, const BlockSpec& spec,
                           const BlockViews<ConstTensorView>& weights,
                           const BlockViews<TensorView>& gradients, const TokenLayout& layout,
                           const BlockActivations& saved, TensorView dx, TensorView dout,
                           TensorView dproj);

// Turns the gradients of core attention's inputs into the q, k and v columns of dproj. `core` and
// `core_gradients` may be views into proj and dproj.
void CoreInputsBackward(const OpContext& context, const BlockSpec& spec,
                        const BlockViews<ConstTensorView>& weights,
                        const BlockViews<TensorView>& gradients, const TokenLayout& layout,
                        ConstTensorView proj, const CoreTensors& core,
                        const CoreTensors& core_gradients, TensorView dproj);

// dx [S, C] += the gradient through the projection and the norm; adds to `gradients`. An empty
// normed is computed again.
void PreAttentionBackward(const OpContext& context, const BlockSpec& spec,
                          const BlockViews<ConstTensorView>& weights,
                          const BlockViews<TensorView>& gradients, const TokenLayout& layout,
                          ConstTensorView x, TensorView normed, ConstTensorView dproj,
                          TensorView dx);

// Runs the three pieces. Allocates in the context's arena what `recompute` keeps, in `saved`, whose
// x the caller has set; everything else is given back. y [S, C].
void BlockForward(const OpContext& context, const BlockSpec& spec,
                  const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
                  Recompute recompute, BlockActivations& saved, TensorView y);

// dx [S, C]: gradient of y on entry, of x on return. Adds to `gradients`.
void BlockBackward(const OpContext& context, const BlockSpec& spec,
                   const BlockViews<ConstTensorView>& weights,
                   const BlockViews<TensorView>& gradients, const TokenLayout& layout,
                   const BlockActivations& saved, TensorView dx);

}  // namespace evenkeel
