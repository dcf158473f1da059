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
#include "runtime/ops/step_trace.h"
#include "runtime/ops/urpe.h"

namespace evenkeel {
namespace {

template <typename Body>
void ForEachChunk(const OpContext& context, int64_t tokens, const Body& body) {
  const int64_t rows = TokenChunk(context.device());
  for (int64_t begin = 0; begin < tokens; begin += rows) {
    body(begin, std::min(tokens, begin + rows));
  }
}

// Rows of the largest chunk.
int64_t ChunkRows(const OpContext& context, int64_t tokens) {
  return std::min(TokenChunk(context.device()), tokens);
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

// Rows of a tensor [T, columns] that is kept or, if `kept` is empty, of a buffer for one chunk.
class ChunkedRows {
 public:
  ChunkedRows(const OpContext& context, TensorView kept, int64_t tokens, int64_t columns)
      : kept_(kept) {
    if (kept.empty()) buffer_ = Workspace(context, {ChunkRows(context, tokens), columns});
  }
  TensorView operator()(int64_t begin, int64_t end) const {
    return kept_.empty() ? buffer_.Rows(0, end - begin) : kept_.Rows(begin, end);
  }

 private:
  TensorView kept_, buffer_;
};

// The columns of a projection, or of its gradient. q [T, H, D], k and v [T, G, D], gate [T, H D];
// qk [T, H + G, D] is q and k as one.
template <typename View>
struct Parts {
  View q, k, qk, v, gate;
};

template <typename View>
Parts<View> PartsOf(const BlockSpec& spec, const View& proj) {
  const int64_t q_end = spec.q_width(), k_end = q_end + spec.kv_width();
  const int64_t v_end = k_end + spec.kv_width();
  Parts<View> parts;
  parts.q = proj.Columns(0, q_end).SplitHeads(spec.num_heads);
  parts.k = proj.Columns(q_end, k_end).SplitHeads(spec.num_kv_heads);
  parts.qk = proj.Columns(0, k_end).SplitHeads(spec.num_heads + spec.num_kv_heads);
  parts.v = proj.Columns(k_end, v_end).SplitHeads(spec.num_kv_heads);
  if (spec.gated) parts.gate = proj.Columns(v_end, spec.projection_width());
  return parts;
}

// q and k on their way from the projection to core attention. `raw` and `core` are both as one
// where they have the same size (all but LRPE): qk [T, H + G, D].
void FillCoreInputs(const OpContext& context, const BlockSpec& spec,
                    const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
                    const Parts<ConstTensorView>& raw, const CoreTensors& core, TensorView qk) {
  if (spec.position == PositionKind::kLrpe) {
    ActivatedLrpeForward(context, spec.activation, raw.q, weights.theta, layout.positions, core.q);
    ActivatedLrpeForward(context, spec.activation, raw.k, weights.theta, layout.positions, core.k);
    return;
  }
  if (spec.has_activation) ActivationForward(context, spec.activation, raw.qk, qk);
  if (spec.qk_norm) {
    RmsNormForward(context, raw.q, weights.q_norm, spec.norm_eps, core.q);
    RmsNormForward(context, raw.k, weights.k_norm, spec.norm_eps, core.k);
  }
  if (spec.position == PositionKind::kRope) {
    ApplyRope(context, layout.rope_cos, layout.rope_sin, /*inverse=*/false, qk);
  } else if (spec.position == PositionKind::kUrpe) {
    const ConstTensorView from = spec.has_activation ? ConstTensorView(qk) : raw.qk;
    UrpeForward(context, from, weights.theta, weights.reflection, layout.positions, qk);
  }
}

// mixed [c, H D]: what enters the output projection, u * norm(out) or a part of that. Returns `out`
// itself where there is nothing to do.
ConstTensorView MixedOutput(const OpContext& context, const BlockSpec& spec, ConstTensorView out,
                            ConstTensorView gate, TensorView mixed) {
  if (!spec.output_norm) return out;
  if (spec.gated) {
    GatedRmsNormForward(context, out, gate, spec.norm_eps, mixed);
  } else {
    RmsNormForward(context, out, ConstTensorView(), spec.norm_eps, mixed);
  }
  return mixed;
}

// pair = norm(x_mid) W_pair^T + b for one chunk; `normed` [c, C] receives norm(x_mid).
void PairForward(const OpContext& context, const BlockSpec& spec,
                 const BlockViews<ConstTensorView>& weights, ConstTensorView x_mid,
                 TensorView normed, TensorView pair) {
  RmsNormForward(context, x_mid, weights.mlp_norm, spec.norm_eps, normed);
  LinearForward(context, normed, weights.mlp_pair, weights.mlp_pair_bias, ConstTensorView(), pair);
}

}  // namespace

void PreAttentionForward(const OpContext& context, const BlockSpec& spec,
                         const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
                         ConstTensorView x, TensorView normed, TensorView proj) {
  const ArenaScope scope(context.arena);
  const ChunkedRows normed_rows(context, normed, x.dim(0), spec.hidden_size);
  ForEachChunk(context, x.dim(0), [&](int64_t begin, int64_t end) {
    TensorView normed_chunk = normed_rows(begin, end);
    TensorView chunk = proj.Rows(begin, end);
    RmsNormForward(context, x.Rows(begin, end), weights.attention_norm, spec.norm_eps,
                   normed_chunk);
    LinearForward(context, normed_chunk, weights.in_proj, weights.in_proj_bias, ConstTensorView(),
                  chunk);
    if (!spec.copies_qk() && spec.position == PositionKind::kRope) {
      ApplyRope(context, layout.rope_cos.Rows(begin, end), layout.rope_sin.Rows(begin, end),
                /*inverse=*/false, PartsOf(spec, chunk).qk);
    }
  });
}

CoreTensors MakeCoreInputs(const OpContext& context, const BlockSpec& spec,
                           const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
                           TensorView proj) {
  const auto parts = PartsOf(spec, proj);
  CoreTensors core{parts.q, parts.k, parts.v};
  if (!spec.copies_qk()) return core;
  const int64_t tokens = proj.dim(0), heads = spec.num_heads + spec.num_kv_heads;
  const TensorView qk = Workspace(context, {tokens, heads, spec.core_qk_size()});
  core.q = qk.Slice(1, 0, spec.num_heads);
  core.k = qk.Slice(1, spec.num_heads, heads);
  FillCoreInputs(context, spec, weights, layout, PartsOf(spec, ConstTensorView(proj)), core, qk);
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
      return LightningAttentionForward(context, layout.sequences, spec.slopes, inputs.q, inputs.k,
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
      return SoftmaxAttentionBackward(
          context, spec.core == CoreKind::kSoftmax ? layout.tasks : layout.block_tasks, spec.scale,
          inputs.q, inputs.k, inputs.v, out.SplitHeads(spec.num_heads), lse, dheads, gradients.q,
          gradients.k, gradients.v, KeyGradients::kWrite);
    case CoreKind::kBlockRelu:
      return ReluBlockAttentionBackward(context, layout.block_tasks, spec.scale, inputs.q, inputs.k,
                                        inputs.v, dheads, gradients.q, gradients.k, gradients.v);
    case CoreKind::kLightning:
      return LightningAttentionBackward(context, layout.sequences, spec.slopes, inputs.q, inputs.k,
                                        inputs.v, ConstTensorView(), dheads, ConstTensorView(),
                                        gradients.q, gradients.k, gradients.v, TensorView());
  }
}

void PostAttentionForward(const OpContext& context, const BlockSpec& spec,
                          const BlockViews<ConstTensorView>& weights, ConstTensorView x,
                          ConstTensorView proj, ConstTensorView out, TensorView x_mid,
                          TensorView normed_mid, TensorView pair, TensorView y) {
  const ArenaScope scope(context.arena);
  const int64_t tokens = x.dim(0), rows = ChunkRows(context, tokens);
  TensorView mixed_buffer =
      spec.output_norm ? Workspace(context, {rows, spec.q_width()}) : TensorView();
  const ChunkedRows mid_rows(context, x_mid, tokens, spec.hidden_size);
  const ChunkedRows normed_rows(context, normed_mid, tokens, spec.hidden_size);
  const ChunkedRows pair_rows(context, pair, tokens, 2 * spec.intermediate_size);
  TensorView hidden_buffer = Workspace(context, {rows, spec.intermediate_size});
  ForEachChunk(context, tokens, [&](int64_t begin, int64_t end) {
    const int64_t n = end - begin;
    TensorView mid = mid_rows(begin, end), pair_chunk = pair_rows(begin, end);
    TensorView hidden = hidden_buffer.Rows(0, n), y_chunk = y.Rows(begin, end);
    const ConstTensorView mixed =
        MixedOutput(context, spec, out.Rows(begin, end), PartsOf(spec, proj.Rows(begin, end)).gate,
                    RowsOrEmpty(mixed_buffer, 0, n));
    LinearForward(context, mixed, weights.out_proj, weights.out_proj_bias, x.Rows(begin, end), mid);
    PairForward(context, spec, weights, mid, normed_rows(begin, end), pair_chunk);
    GatedUnitForward(context, spec.unit, pair_chunk, hidden);
    LinearForward(context, hidden, weights.mlp_down, weights.mlp_down_bias, mid, y_chunk);
  });
}

void PostAttentionBackward(const OpContext& context, const BlockSpec& spec,
                           const BlockViews<ConstTensorView>& weights,
                           const BlockViews<TensorView>& gradients, const BlockActivations& saved,
                           TensorView dx, TensorView dout, TensorView dproj) {
  const ArenaScope scope(context.arena);
  const int64_t rows = ChunkRows(context, dx.dim(0));
  const bool keeps_mlp = !saved.x_mid.empty();
  TensorView mixed_buffer =
      spec.output_norm ? Workspace(context, {rows, spec.q_width()}) : TensorView();
  const ChunkedRows normed_rows(context, saved.normed_mid, dx.dim(0), spec.hidden_size);
  TensorView dnormed_buffer = Workspace(context, {rows, spec.hidden_size});
  TensorView mid_buffer, pair_buffer;

  if (!keeps_mlp) {
    mid_buffer = Workspace(context, {rows, spec.hidden_size});
    pair_buffer = Workspace(context, {rows, 2 * spec.intermediate_size});
  }
  TensorView hidden_buffer = Workspace(context, {rows, spec.intermediate_size});
  TensorView dpair_buffer = Workspace(context, {rows, 2 * spec.intermediate_size});

  ForEachChunk(context, dx.dim(0), [&](int64_t begin, int64_t end) {
    const int64_t n = end - begin;
    TensorView dy = dx.Rows(begin, end), normed = normed_rows(begin, end);

    TensorView dnormed = dnormed_buffer.Rows(0, n), hidden = hidden_buffer.Rows(0, n);
    TensorView dpair = dpair_buffer.Rows(0, n);
    const ConstTensorView out = saved.out.Rows(begin, end);
    const ConstTensorView gate = PartsOf(spec, saved.proj.Rows(begin, end)).gate;
    const ConstTensorView mixed =
        MixedOutput(context, spec, out, gate, RowsOrEmpty(mixed_buffer, 0, n));
    TensorView mid, pair;
    if (keeps_mlp) {
      mid = saved.x_mid.Rows(begin, end);
      pair = saved.pair.Rows(begin, end);
      if (saved.normed_mid.empty()) {
        RmsNormForward(context, mid, weights.mlp_norm, spec.norm_eps, normed);
      }
    } else {
      mid = mid_buffer.Rows(0, n);
      pair = pair_buffer.Rows(0, n);
      LinearForward(context, mixed, weights.out_proj, weights.out_proj_bias,
                    saved.x.Rows(begin, end), mid);
      PairForward(context, spec, weights, mid, normed, pair);
    }

    // Feed-forward. `hidden` holds its own gradient first, then itself.
    LinearBackwardInput(context, dy, weights.mlp_down, hidden);
    GatedUnitBackward(context, spec.unit, pair, hidden, dpair, hidden);
    LinearBackwardWeight(context, dy, hidden, gradients.mlp_down);
    if (!gradients.mlp_down_bias.empty()) BiasBackward(context, dy, gradients.mlp_down_bias);
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
      GatedRmsNormBackward(context, out, gate, spec.norm_eps, dmixed, dmixed,
                           PartsOf(spec, dproj.Rows(begin, end)).gate);
    } else if (spec.output_norm) {
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
  if (spec.position == PositionKind::kLrpe) {
    ActivatedLrpeBackward(context, spec.activation, raw.q, weights.theta, layout.positions,
                          core_gradients.q, draw.q, gradients.theta);
    ActivatedLrpeBackward(context, spec.activation, raw.k, weights.theta, layout.positions,
                          core_gradients.k, draw.k, gradients.theta);
    return;
  }
  // All that follows is in place: the gradients of core attention's inputs are views into dproj.
  if (spec.position == PositionKind::kRope) {
    ApplyRope(context, layout.rope_cos, layout.rope_sin, /*inverse=*/true, draw.qk);
  } else if (spec.position == PositionKind::kUrpe) {
    UrpeBackward(context, core.q, weights.theta, weights.reflection, layout.positions, draw.q,
                 draw.q, gradients.theta);
    UrpeBackward(context, core.k, weights.theta, weights.reflection, layout.positions, draw.k,
                 draw.k, gradients.theta);
  }
  if (spec.qk_norm) {
    RmsNormBackward(context, raw.q, weights.q_norm, spec.norm_eps, draw.q, draw.q,
                    /*accumulate=*/false, gradients.q_norm);
    RmsNormBackward(context, raw.k, weights.k_norm, spec.norm_eps, draw.k, draw.k,
                    /*accumulate=*/false, gradients.k_norm);
  }
  if (spec.has_activation) {
    ActivationBackward(context, spec.activation, raw.qk, draw.qk, draw.qk);
  }
}

void PreAttentionBackward(const OpContext& context, const BlockSpec& spec,
                          const BlockViews<ConstTensorView>& weights,
                          const BlockViews<TensorView>& gradients, ConstTensorView x,
                          ConstTensorView normed, ConstTensorView dproj, TensorView dx) {
  const ArenaScope scope(context.arena);
  const int64_t tokens = x.dim(0), rows = ChunkRows(context, tokens);
  TensorView normed_buffer =
      normed.empty() ? Workspace(context, {rows, spec.hidden_size}) : TensorView();
  TensorView dnormed_buffer = Workspace(context, {rows, spec.hidden_size});
  ForEachChunk(context, tokens, [&](int64_t begin, int64_t end) {
    const ConstTensorView x_chunk = x.Rows(begin, end), dproj_chunk = dproj.Rows(begin, end);
    ConstTensorView normed_chunk = RowsOrEmpty(normed, begin, end);
    if (normed.empty()) {
      const TensorView again = normed_buffer.Rows(0, end - begin);
      RmsNormForward(context, x_chunk, weights.attention_norm, spec.norm_eps, again);
      normed_chunk = again;
    }
    TensorView dnormed = dnormed_buffer.Rows(0, end - begin);
    LinearBackwardWeight(context, dproj_chunk, normed_chunk, gradients.in_proj);
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
  {
    const TraceScope trace(context, "pre-attention");
    PreAttentionForward(context, spec, weights, layout, saved.x, saved.normed, saved.proj);
  }
  const TraceScope trace(context, "core attention");
  const ArenaScope scope(context.arena);
  const CoreTensors core = MakeCoreInputs(context, spec, weights, layout, saved.proj);
  LocalCoreForward(context, spec, layout, core, saved.out, saved.lse);
}

void AllocateAttention(const OpContext& context, const BlockSpec& spec, BlockActivations& saved) {
  const int64_t tokens = saved.x.dim(0);
  saved.proj = Activations(context, {tokens, spec.projection_width()});
  saved.out = Activations(context, {tokens, spec.q_width()});
  if (spec.has_lse()) {
    saved.lse = context.arena.Allocate(context.wide_dtype(), {tokens, spec.num_heads},
                                       MemoryPurpose::kActivations);
  }
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
    if (context.cuda != nullptr) {
      saved.normed = Activations(context, {tokens, spec.hidden_size});
      saved.normed_mid = Activations(context, {tokens, spec.hidden_size});
    }
  }
  AttentionForward(context, spec, weights, layout, saved);
  {
    const TraceScope trace(context, "post-attention");
    PostAttentionForward(context, spec, weights, saved.x, saved.proj, saved.out, saved.x_mid,
                         saved.normed_mid, saved.pair, y);
  }
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
    const TraceScope trace(context, "attention again");
    AllocateAttention(context, spec, saved);
    AttentionForward(context, spec, weights, layout, saved);
  }
  TensorView dproj = Workspace(context, {tokens, spec.projection_width()});
  {
    const ArenaScope core_scope(context.arena);
    TensorView dout = Workspace(context, {tokens, spec.q_width()});
    {
      const TraceScope trace(context, "post-attention backward");
      PostAttentionBackward(context, spec, weights, gradients, saved, dx, dout, dproj);
    }
    const TraceScope trace(context, "core attention backward");
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
  const TraceScope trace(context, "pre-attention backward");

  PreAttentionBackward(context, spec, weights, gradients, saved.x, saved.normed, dproj, dx);
}

}  // namespace evenkeel
