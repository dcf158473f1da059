#include "models/block.h"

#include "models/block_chunks.h"
#include "models/linear.h"
#include "models/row_parallel.h"
#include "runtime/ops/activation.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/norm.h"
#include "runtime/ops/position.h"
#include "runtime/ops/step_trace.h"
#include "runtime/ops/urpe.h"

namespace evenkeel {
namespace {

// q and k on their way from the projection to core attention. `raw` and `core` are both as one
// where they have the same size (all but LRPE): qk [T, H + G, D].
void FillCoreInputs(const OpContext& context, const BlockSpec& spec,
                    const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
                    const ProjectionParts<ConstTensorView>& raw, const CoreTensors& core,
                    TensorView qk) {
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

}  // namespace

void PreAttentionForward(const OpContext& context, const BlockSpec& spec,
                         const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
                         ConstTensorView x, TensorView normed, TensorView proj) {
  const ArenaScope scope(context.arena);
  const TokenShards& shards = layout.shards;
  const ChunkedRows normed_rows(context, shards, normed, spec.hidden_size);
  ChunkGather gather(context, shards, spec.hidden_size, "input of attention");
  const Linear in_proj(context, weights.in_proj, spec.fp8.in_proj, Fp8Layouts::kRows);
  const auto normalize = [&](int64_t chunk) {
    RmsNormForward(context, RowsOf(x, shards.Mine(chunk)), weights.attention_norm, spec.norm_eps,
                   normed_rows(chunk));
    gather.Start(chunk, normed_rows(chunk));
  };
  const auto project = [&](int64_t chunk) {
    const ArenaScope operands(context.arena);
    const RowSpan rows = shards.Whole(chunk);
    TensorView chunk_proj = RowsOf(proj, rows);
    in_proj.Forward(in_proj.Input(gather.Finish(chunk), Fp8Layouts::kRows), weights.in_proj_bias,
                    ConstTensorView(), chunk_proj);
    if (!spec.copies_qk() && spec.position == PositionKind::kRope) {
      ApplyRope(context, RowsOf(layout.rope_cos, rows), RowsOf(layout.rope_sin, rows),
                /*inverse=*/false, PartsOf(spec, chunk_proj).qk);
    }
  };
  RunStages(shards, {{0, normalize}, {1, project}});
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
                          const BlockViews<TensorView>& gradients, const TokenLayout& layout,
                          ConstTensorView x, TensorView normed, ConstTensorView dproj,
                          TensorView dx) {
  const ArenaScope scope(context.arena);
  const TokenShards& shards = layout.shards;
  const ChunkedRows normed_rows(context, shards, normed, spec.hidden_size);
  const ChunkedRows dnormed_rows(context, shards, TensorView(), spec.hidden_size);
  ChunkGather gather(context, shards, spec.hidden_size, "input of attention again");
  ColumnParallelBackward backward(context, shards, spec.hidden_size, "gradient of attention");
  const Linear in_proj(context, weights.in_proj, spec.fp8.in_proj, Fp8Layouts::kColumns);
  const auto normalize = [&](int64_t chunk) {
    if (normed.empty()) {
      RmsNormForward(context, RowsOf(x, shards.Mine(chunk)), weights.attention_norm, spec.norm_eps,
                     normed_rows(chunk));
    }
    gather.Start(chunk, normed_rows(chunk));
  };
  const auto project = [&](int64_t chunk) {
    const ArenaScope operands(context.arena);
    const ConstTensorView dproj_chunk = RowsOf(dproj, shards.Whole(chunk));
    const LinearOperand dy = in_proj.OutputGradient(dproj_chunk);
    in_proj.BackwardWeight(dy, in_proj.Input(gather.Finish(chunk), Fp8Layouts::kColumns),
                           gradients.in_proj);
    if (!gradients.in_proj_bias.empty()) BiasBackward(context, dproj_chunk, gradients.in_proj_bias);
    backward.Start(chunk, in_proj, dy, dnormed_rows(chunk));
  };
  const auto add = [&](int64_t chunk) {
    backward.Finish(chunk);
    RmsNormBackward(context, RowsOf(x, shards.Mine(chunk)), weights.attention_norm, spec.norm_eps,
                    dnormed_rows(chunk), RowsOf(dx, shards.Mine(chunk)), /*accumulate=*/true,
                    gradients.attention_norm);
  };
  RunStages(shards, {{0, normalize}, {2, add}, {1, project}});
}

namespace {

// The first piece, into saved.proj, which must be there.
void Project(const OpContext& context, const BlockSpec& spec,
             const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
             const BlockActivations& saved) {
  const TraceScope trace(context, "pre-attention");
  PreAttentionForward(context, spec, weights, layout, saved.x, saved.normed, saved.proj);
}

// The first two, into saved.proj and core.
void AttentionForward(const OpContext& context, const BlockSpec& spec,
                      const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
                      const BlockActivations& saved) {
  Project(context, spec, weights, layout, saved);
  const TraceScope trace(context, "core attention");
  const ArenaScope scope(context.arena);
  const CoreTensors core = MakeCoreInputs(context, spec, weights, layout, saved.proj);
  CoreForward(context, spec, layout, core, saved.core);
}

TensorView AllocateProjection(const OpContext& context, const BlockSpec& spec,
                              const TokenLayout& layout) {
  return Activations(context, {layout.shards.num_tokens(), spec.projection_width()});
}

}  // namespace

void BlockForward(const OpContext& context, const BlockSpec& spec,
                  const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
                  Recompute recompute, BlockActivations& saved, TensorView y) {
  const Shape stream = saved.x.shape;
  const Arena::Mark before = context.arena.mark();
  saved.core = AllocateCore(context, spec, layout);
  const Arena::Mark kept = recompute == Recompute::kLayer ? before : context.arena.mark();
  saved.proj = AllocateProjection(context, spec, layout);
  if (recompute == Recompute::kNone) {
    saved.x_mid = Activations(context, stream);
    saved.pair = Activations(context, {layout.shards.num_tokens(), 2 * spec.intermediate_size});
    if (context.cuda != nullptr) {
      saved.normed = Activations(context, stream);
      saved.normed_mid = Activations(context, stream);
    }
  }
  AttentionForward(context, spec, weights, layout, saved);
  {
    const TraceScope trace(context, "post-attention");
    PostAttentionForward(context, spec, weights, layout, saved, y);
  }
  if (ComputesProjectionAgain(recompute)) {
    context.arena.Release(kept);
    saved.proj = TensorView();
    if (recompute == Recompute::kLayer) saved.core = CoreSaved();
  }
}

void BlockBackward(const OpContext& context, const BlockSpec& spec,
                   const BlockViews<ConstTensorView>& weights,
                   const BlockViews<TensorView>& gradients, const TokenLayout& layout,
                   const BlockActivations& kept, TensorView dx) {
  const ArenaScope scope(context.arena);
  const int64_t tokens = layout.shards.num_tokens();
  BlockActivations saved = kept;
  if (saved.proj.empty()) {
    const bool keeps_core = !saved.core.out.empty();
    const TraceScope trace(context, keeps_core ? "projection again" : "attention again");
    if (!keeps_core) saved.core = AllocateCore(context, spec, layout);
    saved.proj = AllocateProjection(context, spec, layout);
    (keeps_core ? Project : AttentionForward)(context, spec, weights, layout, saved);
  }
  TensorView dproj = Workspace(context, {tokens, spec.projection_width()});
  {
    const ArenaScope core_scope(context.arena);
    TensorView dout = Workspace(context, {tokens, spec.q_width()});
    {
      const TraceScope trace(context, "post-attention backward");
      PostAttentionBackward(context, spec, weights, gradients, layout, saved, dx, dout, dproj);
    }
    const TraceScope trace(context, "core attention backward");
    const CoreTensors core = MakeCoreInputs(context, spec, weights, layout, saved.proj);
    const auto dparts = PartsOf(spec, dproj);
    CoreTensors dcore{dparts.q, dparts.k, dparts.v};
    if (spec.position == PositionKind::kLrpe) {
      dcore.q = Workspace(context, core.q.shape);
      dcore.k = Workspace(context, core.k.shape);
    }
    CoreBackward(context, spec, layout, core, saved.core, dout, dcore);
    CoreInputsBackward(context, spec, weights, gradients, layout, saved.proj, core, dcore, dproj);
  }
  const TraceScope trace(context, "pre-attention backward");
  PreAttentionBackward(context, spec, weights, gradients, layout, saved.x, saved.normed, dproj, dx);
}

}  // namespace evenkeel
