#include "models/block.h"

#include <algorithm>

#include "attention/block_attention.h"
#include "attention/lightning_attention.h"
#include "attention/softmax_attention.h"
#include "runtime/ops/activation.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/norm.h"
#include "runtime/ops/position.h"
#include "runtime/ops/urpe.h"

namespace evenkeel {
namespace {

template <typename Body>
void ForEachChunk(int64_t tokens, const Body& body) {
  for (int64_t begin = 0; begin < tokens; begin += kTokenChunk) {
    body(begin, std::min(tokens, begin + kTokenChunk));
  }
}

template <typename View>
View RowsOrEmpty(const View& view, int64_t begin, int64_t end) {
  return view.empty() ? view : view.Rows(begin, end);
}

TensorView Workspace(const OpContext& context, Shape shape) {
  return context.arena.Allocate(context.dtype, shape, MemoryPurpose::kWorkspace);
}

TensorView Activations(const OpContext& context, Shape shape) {
  return context.arena.Allocate(context.dtype, shape, MemoryPurpose::kActivations);
}

// The columns of a projection, or of its gradient. q [T, H, D], k and v [T, G, D], gate [T, H D].
template <typename View>
struct Parts {
  View q, k, v, gate;
};

template <typename View>
Parts<View> PartsOf(const BlockSpec& spec, const View& proj) {
  const int64_t q_end = spec.q_width(), k_end = q_end + spec.kv_width();
  const int64_t v_end = k_end + spec.kv_width();
  Parts<View> parts;
  parts.q = proj.Columns(0, q_end).SplitHeads(spec.num_heads);
  parts.k = proj.Columns(q_end, k_end).SplitHeads(spec.num_kv_heads);
  parts.v = proj.Columns(k_end, v_end).SplitHeads(spec.num_kv_heads);
  if (spec.gated) parts.gate = proj.Columns(v_end, spec.projection_width());
  return parts;
}

// One of q and k on its way from the projection to core attention. `core` [T, heads, Dq].
void FillCoreInput(const OpContext& context, const BlockSpec& spec, const TokenLayout& layout,
                   ConstTensorView norm_gain, ConstTensorView theta, ConstTensorView reflection,
                   ConstTensorView raw, TensorView core) {
  if (spec.position == PositionKind::kLrpe) {
    const ArenaScope scope(context.arena);
    TensorView activated = Workspace(context, raw.shape);
    ActivationForward(context, spec.activation, raw, activated);
    LrpeForward(context, activated, theta, layout.positions, core);
    return;
  }
  if (spec.has_activation) ActivationForward(context, spec.activation, raw, core);
  if (spec.qk_norm) RmsNormForward(context, raw, norm_gain, spec.norm_eps, core);
  const bool filled = spec.has_activation || spec.qk_norm;
  if (spec.position == PositionKind::kRope) {
    ApplyRope(context, layout.rope_cos, layout.rope_sin, /*inverse=*/false, core);
  } else if (spec.position == PositionKind::kUrpe) {
    UrpeForward(context, filled ? core : raw, theta, reflection, layout.positions, core);
  }
}

// The way back: dcore [T, heads, Dq] -> draw [T, heads, D], which are the same memory but for LRPE.
void CoreInputBackward(const OpContext& context, const BlockSpec& spec, const TokenLayout& layout,
                       ConstTensorView norm_gain, ConstTensorView theta, ConstTensorView reflection,
                       TensorView norm_gain_gradient, TensorView theta_gradient,
                       ConstTensorView raw, ConstTensorView core, TensorView dcore,
                       TensorView draw) {
  switch (spec.position) {
    case PositionKind::kNone:
      break;
    case PositionKind::kRope:
      ApplyRope(context, layout.rope_cos, layout.rope_sin, /*inverse=*/true, dcore);
      break;
    case PositionKind::kUrpe:
      UrpeBackward(context, core, theta, reflection, layout.positions, dcore, dcore,
                   theta_gradient);
      break;
    case PositionKind::kLrpe: {
      const ArenaScope scope(context.arena);
      TensorView activated = Workspace(context, raw.shape);
      ActivationForward(context, spec.activation, raw, activated);
      LrpeBackward(context, activated, theta, layout.positions, dcore, draw, theta_gradient);
      break;
    }
  }
  if (spec.qk_norm) {
    RmsNormBackward(context, raw, norm_gain, spec.norm_eps, draw, draw, /*accumulate=*/false,
                    norm_gain_gradient);
  }
  if (spec.has_activation) ActivationBackward(context, spec.activation, raw, draw, draw);
}

// mixed [c, H D]: what enters the output projection, u * norm(out) or a part of that. Returns `out`
// itself where there is nothing to do.
ConstTensorView MixedOutput(const OpContext& context, const BlockSpec& spec, ConstTensorView out,
                            ConstTensorView gate, TensorView mixed) {
  if (!spec.output_norm) return out;
  RmsNormForward(context, out, ConstTensorView(), spec.norm_eps, mixed);
  if (spec.gated) Multiply(context, mixed, gate, mixed);
  return mixed;
}

// x_mid = x + mixed W_o^T + b for one chunk.
void OutputProjectionForward(const OpContext& context, const BlockViews<ConstTensorView>& weights,
                             ConstTensorView x, ConstTensorView mixed, TensorView x_mid) {
  Copy(context, x, x_mid);
  LinearForward(context, mixed, weights.out_proj, x_mid, /*accumulate=*/true);
  if (!weights.out_proj_bias.empty()) AddBias(context, weights.out_proj_bias, x_mid);
}

// pair = norm(x_mid) W_pair^T + b for one chunk; `normed` [c, C] receives norm(x_mid).
void PairForward(const OpContext& context, const BlockSpec& spec,
                 const BlockViews<ConstTensorView>& weights, ConstTensorView x_mid,
                 TensorView normed, TensorView pair) {
  RmsNormForward(context, x_mid, weights.mlp_norm, spec.norm_eps, normed);
  LinearForward(context, normed, weights.mlp_pair, pair);
  if (!weights.mlp_pair_bias.empty()) AddBias(context, weights.mlp_pair_bias, pair);
}

}  // namespace

void PreAttentionForward(const OpContext& context, const BlockSpec& spec,
                         const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
                         ConstTensorView x, TensorView proj) {
  const ArenaScope scope(context.arena);
  TensorView normed_buffer =
      Workspace(context, {std::min(kTokenChunk, x.dim(0)), spec.hidden_size});
  ForEachChunk(x.dim(0), [&](int64_t begin, int64_t end) {
    TensorView normed = normed_buffer.Rows(0, end - begin);
    TensorView chunk = proj.Rows(begin, end);
    RmsNormForward(context, x.Rows(begin, end), weights.attention_norm, spec.norm_eps, normed);
    LinearForward(context, normed, weights.in_proj, chunk);
    if (!weights.in_proj_bias.empty()) AddBias(context, weights.in_proj_bias, chunk);
    if (!spec.copies_qk() && spec.position == PositionKind::kRope) {
      const auto parts = PartsOf(spec, chunk);
      const auto cos = layout.rope_cos.Rows(begin, end), sin = layout.rope_sin.Rows(begin, end);
      ApplyRope(context, cos, sin, /*inverse=*/false, parts.q);
      ApplyRope(context, cos, sin, /*inverse=*/false, parts.k);
    }
  });
}

CoreTensors MakeCoreInputs(const OpContext& context, const BlockSpec& spec,
                           const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
                           TensorView proj) {
  const auto parts = PartsOf(spec, proj);
  CoreTensors core{parts.q, parts.k, parts.v};
  if (!spec.copies_qk()) return core;
  const int64_t tokens = proj.dim(0);
  core.q = Workspace(context, {tokens, spec.num_heads, spec.core_qk_size()});
  core.k = Workspace(context, {tokens, spec.num_kv_heads, spec.core_qk_size()});
  FillCoreInput(context, spec, layout, weights.q_norm, weights.theta, weights.reflection, parts.q,
                core.q);
  FillCoreInput(context, spec, layout, weights.k_norm, weights.theta, weights.reflection, parts.k,
                core.k);
  return core;
}

void LocalCoreForward(const OpContext& context, const BlockSpec& spec, const TokenLayout& layout,
                      const CoreTensors& inputs, TensorView out, TensorView lse) {
  const TensorView heads = out.SplitHeads(spec.num_heads);
  switch (spec.core) {
    case CoreKind::kSoftmax:
      return SoftmaxAttentionForward(context, layout.tasks, spec.scale, inputs.q, inputs.k,
                                     inputs.v, heads, lse);
    case CoreKind::kBlockSoftmax:
      return SoftmaxAttentionForward(context, layout.block_tasks, spec.scale, inputs.q, inputs.k,
                                     inputs.v, heads, lse);
    case CoreKind::kBlockRelu:
      return ReluBlockAttentionForward(context, layout.block_tasks, spec.scale, inputs.q, inputs.k,
                                       inputs.v, heads);
    case CoreKind::kLightning:
      return LightningAttentionForward(context, layout.cu_seqlens, spec.slopes, inputs.q, inputs.k,
                                       inputs.v, ConstTensorView(), heads, TensorView());
  }
}

void LocalCoreBackward(const OpContext& context, const BlockSpec& spec, const TokenLayout& layout,
                       const CoreTensors& inputs, ConstTensorView out, ConstTensorView lse,
                       ConstTensorView dout, const CoreTensors& gradients) {
  const ConstTensorView dheads = dout.SplitHeads(spec.num_heads);
  switch (spec.core) {
    case CoreKind::kSoftmax:
    case CoreKind::kBlockSoftmax:
      SetZero(context, gradients.k.MergeHeads());
      SetZero(context, gradients.v.MergeHeads());
      return SoftmaxAttentionBackward(
          context, spec.core == CoreKind::kSoftmax ? layout.tasks : layout.block_tasks, spec.scale,
          inputs.q, inputs.k, inputs.v, out.SplitHeads(spec.num_heads), lse, dheads, gradients.q,
          gradients.k, gradients.v);
    case CoreKind::kBlockRelu:
      return ReluBlockAttentionBackward(context, layout.block_tasks, spec.scale, inputs.q, inputs.k,
                                        inputs.v, dheads, gradients.q, gradients.k, gradients.v);
    case CoreKind::kLightning:
      return LightningAttentionBackward(context, layout.cu_seqlens, spec.slopes, inputs.q, inputs.k,
                                        inputs.v, ConstTensorView(), dheads, ConstTensorView(),
                                        gradients.q, gradients.k, gradients.v, TensorView());
  }
}

void PostAttentionForward(const OpContext& context, const BlockSpec& spec,
                          const BlockViews<ConstTensorView>& weights, ConstTensorView x,
                          ConstTensorView proj, ConstTensorView out, TensorView x_mid,
                          TensorView pair, TensorView y) {
  const ArenaScope scope(context.arena);
  const int64_t rows = std::min(kTokenChunk, x.dim(0));
  TensorView mixed_buffer = Workspace(context, {rows, spec.q_width()});
  TensorView normed_buffer = Workspace(context, {rows, spec.hidden_size});
  TensorView mid_buffer = x_mid.empty() ? Workspace(context, {rows, spec.hidden_size}) : x_mid;
  TensorView pair_buffer =
      pair.empty() ? Workspace(context, {rows, 2 * spec.intermediate_size}) : pair;
  TensorView hidden_buffer = Workspace(context, {rows, spec.intermediate_size});
  ForEachChunk(x.dim(0), [&](int64_t begin, int64_t end) {
    const int64_t n = end - begin;
    TensorView mid = x_mid.empty() ? mid_buffer.Rows(0, n) : x_mid.Rows(begin, end);
    TensorView pair_chunk = pair.empty() ? pair_buffer.Rows(0, n) : pair.Rows(begin, end);
    TensorView hidden = hidden_buffer.Rows(0, n), y_chunk = y.Rows(begin, end);
    const ConstTensorView mixed =
        MixedOutput(context, spec, out.Rows(begin, end), PartsOf(spec, proj.Rows(begin, end)).gate,
                    mixed_buffer.Rows(0, n));
    OutputProjectionForward(context, weights, x.Rows(begin, end), mixed, mid);
    PairForward(context, spec, weights, mid, normed_buffer.Rows(0, n), pair_chunk);
    GatedUnitForward(context, spec.unit, pair_chunk, hidden);
    Copy(context, mid, y_chunk);
    LinearForward(context, hidden, weights.mlp_down, y_chunk, /*accumulate=*/true);
    if (!weights.mlp_down_bias.empty()) AddBias(context, weights.mlp_down_bias, y_chunk);
  });
}

void PostAttentionBackward(const OpContext& context, const BlockSpec& spec,
                           const BlockViews<ConstTensorView>& weights,
                           const BlockViews<TensorView>& gradients, const BlockActivations& saved,
                           TensorView dx, TensorView dout, TensorView dproj) {
  const ArenaScope scope(context.arena);
  const int64_t rows = std::min(kTokenChunk, dx.dim(0));
  const bool keeps_mlp = !saved.x_mid.empty();
  TensorView mixed_buffer = Workspace(context, {rows, spec.q_width()});
  TensorView normed_buffer = Workspace(context, {rows, spec.hidden_size});
  TensorView dnormed_buffer = Workspace(context, {rows, spec.hidden_size});
  TensorView mid_buffer, pair_buffer;
  if (!keeps_mlp) {
    mid_buffer = Workspace(context, {rows, spec.hidden_size});
    pair_buffer = Workspace(context, {rows, 2 * spec.intermediate_size});
  }
  TensorView hidden_buffer = Workspace(context, {rows, spec.intermediate_size});
  TensorView dhidden_buffer = Workspace(context, {rows, spec.intermediate_size});
  TensorView dpair_buffer = Workspace(context, {rows, 2 * spec.intermediate_size});
  TensorView outnorm_buffer =
      spec.gated ? Workspace(context, {rows, spec.q_width()}) : TensorView();

  ForEachChunk(dx.dim(0), [&](int64_t begin, int64_t end) {
    const int64_t n = end - begin;
    TensorView dy = dx.Rows(begin, end), normed = normed_buffer.Rows(0, n);
    TensorView dnormed = dnormed_buffer.Rows(0, n), hidden = hidden_buffer.Rows(0, n);
    TensorView dhidden = dhidden_buffer.Rows(0, n), dpair = dpair_buffer.Rows(0, n);
    const ConstTensorView out = saved.out.Rows(begin, end);
    const ConstTensorView gate = PartsOf(spec, saved.proj.Rows(begin, end)).gate;
    const ConstTensorView mixed = MixedOutput(context, spec, out, gate, mixed_buffer.Rows(0, n));
    TensorView mid, pair;
    if (keeps_mlp) {
      mid = saved.x_mid.Rows(begin, end);
      pair = saved.pair.Rows(begin, end);
      RmsNormForward(context, mid, weights.mlp_norm, spec.norm_eps, normed);
    } else {
      mid = mid_buffer.Rows(0, n);
      pair = pair_buffer.Rows(0, n);
      OutputProjectionForward(context, weights, saved.x.Rows(begin, end), mixed, mid);
      PairForward(context, spec, weights, mid, normed, pair);
    }

    // Feed-forward.
    GatedUnitForward(context, spec.unit, pair, hidden);
    LinearBackwardWeight(context, dy, hidden, gradients.mlp_down);
    if (!gradients.mlp_down_bias.empty()) BiasBackward(context, dy, gradients.mlp_down_bias);
    LinearBackwardInput(context, dy, weights.mlp_down, dhidden);
    GatedUnitBackward(context, spec.unit, pair, dhidden, dpair);
    LinearBackwardWeight(context, dpair, normed, gradients.mlp_pair);
    if (!gradients.mlp_pair_bias.empty()) BiasBackward(context, dpair, gradients.mlp_pair_bias);
    LinearBackwardInput(context, dpair, weights.mlp_pair, dnormed);
    RmsNormBackward(context, mid, weights.mlp_norm, spec.norm_eps, dnormed, dy,
                    /*accumulate=*/true, gradients.mlp_norm);

    // Output projection, gate and norm.
    LinearBackwardWeight(context, dy, mixed, gradients.out_proj);
    if (!gradients.out_proj_bias.empty()) BiasBackward(context, dy, gradients.out_proj_bias);
    TensorView dmixed = dout.Rows(begin, end);
    LinearBackwardInput(context, dy, weights.out_proj, dmixed);
    if (spec.gated) {
      TensorView out_normed = outnorm_buffer.Rows(0, n);
      RmsNormForward(context, out, ConstTensorView(), spec.norm_eps, out_normed);
      Multiply(context, dmixed, out_normed, PartsOf(spec, dproj.Rows(begin, end)).gate);
      Multiply(context, dmixed, gate, dmixed);
    }
    if (spec.output_norm) {
      RmsNormBackward(context, out, ConstTensorView(), spec.norm_eps, dmixed, dmixed,
                      /*accumulate=*/false, TensorView());
    }
  });
}

void CoreInputsBackward(const OpContext& context, const BlockSpec& spec,
                        const BlockViews<ConstTensorView>& weights,
                        const BlockViews<TensorView>& gradients, const TokenLayout& layout,
                        ConstTensorView proj, const CoreTensors& core,
                        const CoreTensors& core_gradients, TensorView dproj) {
  const auto raw = PartsOf(spec, proj);
  const auto draw = PartsOf(spec, dproj);
  CoreInputBackward(context, spec, layout, weights.q_norm, weights.theta, weights.reflection,
                    gradients.q_norm, gradients.theta, raw.q, core.q, core_gradients.q, draw.q);
  CoreInputBackward(context, spec, layout, weights.k_norm, weights.theta, weights.reflection,
                    gradients.k_norm, gradients.theta, raw.k, core.k, core_gradients.k, draw.k);
}

void PreAttentionBackward(const OpContext& context, const BlockSpec& spec,
                          const BlockViews<ConstTensorView>& weights,
                          const BlockViews<TensorView>& gradients, ConstTensorView x,
                          ConstTensorView dproj, TensorView dx) {
  const ArenaScope scope(context.arena);
  const int64_t rows = std::min(kTokenChunk, x.dim(0));
  TensorView normed_buffer = Workspace(context, {rows, spec.hidden_size});
  TensorView dnormed_buffer = Workspace(context, {rows, spec.hidden_size});
  ForEachChunk(x.dim(0), [&](int64_t begin, int64_t end) {
    TensorView normed = normed_buffer.Rows(0, end - begin);
    TensorView dnormed = dnormed_buffer.Rows(0, end - begin);
    const ConstTensorView x_chunk = x.Rows(begin, end), dproj_chunk = dproj.Rows(begin, end);
    RmsNormForward(context, x_chunk, weights.attention_norm, spec.norm_eps, normed);
    LinearBackwardWeight(context, dproj_chunk, normed, gradients.in_proj);
    if (!gradients.in_proj_bias.empty()) BiasBackward(context, dproj_chunk, gradients.in_proj_bias);
    LinearBackwardInput(context, dproj_chunk, weights.in_proj, dnormed);
    RmsNormBackward(context, x_chunk, weights.attention_norm, spec.norm_eps, dnormed,
                    dx.Rows(begin, end), /*accumulate=*/true, gradients.attention_norm);
  });
}

namespace {

// The first two pieces, into saved.proj, out and lse, which must be there.
void AttentionForward(const OpContext& context, const BlockSpec& spec,
                      const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
                      const BlockActivations& saved) {
  PreAttentionForward(context, spec, weights, layout, saved.x, saved.proj);
  const ArenaScope scope(context.arena);
  const CoreTensors core = MakeCoreInputs(context, spec, weights, layout, saved.proj);
  LocalCoreForward(context, spec, layout, core, saved.out, saved.lse);
}

void AllocateAttention(const OpContext& context, const BlockSpec& spec, BlockActivations& saved) {
  const int64_t tokens = saved.x.dim(0);
  saved.proj = Activations(context, {tokens, spec.projection_width()});
  saved.out = Activations(context, {tokens, spec.q_width()});
  if (spec.has_lse()) saved.lse = Activations(context, {tokens, spec.num_heads});
}

}  // namespace

void BlockForward(const OpContext& context, const BlockSpec& spec,
                  const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
                  Recompute recompute, BlockActivations& saved, TensorView y) {
  const int64_t tokens = saved.x.dim(0);
  const Arena::Mark before = context.arena.mark();
  AllocateAttention(context, spec, saved);
  if (recompute == Recompute::kNone) {
    saved.x_mid = Activations(context, {tokens, spec.hidden_size});
    saved.pair = Activations(context, {tokens, 2 * spec.intermediate_size});
  }
  AttentionForward(context, spec, weights, layout, saved);
  PostAttentionForward(context, spec, weights, saved.x, saved.proj, saved.out, saved.x_mid,
                       saved.pair, y);
  if (recompute == Recompute::kLayer) {
    context.arena.Release(before);
    saved.proj = saved.out = saved.lse = TensorView();
  }
}

void BlockBackward(const OpContext& context, const BlockSpec& spec,
                   const BlockViews<ConstTensorView>& weights,
                   const BlockViews<TensorView>& gradients, const TokenLayout& layout,
                   const BlockActivations& kept, TensorView dx) {
  const ArenaScope scope(context.arena);
  const int64_t tokens = kept.x.dim(0);
  BlockActivations saved = kept;
  if (saved.proj.empty()) {
    AllocateAttention(context, spec, saved);
    AttentionForward(context, spec, weights, layout, saved);
  }
  TensorView dproj = Workspace(context, {tokens, spec.projection_width()});
  {
    const ArenaScope core_scope(context.arena);
    TensorView dout = Workspace(context, {tokens, spec.q_width()});
    PostAttentionBackward(context, spec, weights, gradients, saved, dx, dout, dproj);
    const CoreTensors core = MakeCoreInputs(context, spec, weights, layout, saved.proj);
    const auto dparts = PartsOf(spec, dproj);
    CoreTensors dcore{dparts.q, dparts.k, dparts.v};
    if (spec.position == PositionKind::kLrpe) {
      dcore.q = Workspace(context, core.q.shape);
      dcore.k = Workspace(context, core.k.shape);
    }
    LocalCoreBackward(context, spec, layout, core, saved.out, saved.lse, dout, dcore);
    CoreInputsBackward(context, spec, weights, gradients, layout, saved.proj, core, dcore, dproj);
  }
  PreAttentionBackward(context, spec, weights, gradients, saved.x, dproj, dx);
}

}  // namespace evenkeel
