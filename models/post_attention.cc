#include "models/block.h"
#include "models/block_chunks.h"
#include "models/linear.h"
#include "models/row_parallel.h"
#include "runtime/ops/activation.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/norm.h"
#include "runtime/ops/split_norm.h"

namespace evenkeel {
namespace {

// What enters the output projection: u * norm(out), or a part of that.
class OutputMix {
 public:
  OutputMix(const OpContext& context, const BlockSpec& spec, const TokenLayout& layout,
            const BlockActivations& saved)
      : context_(context), spec_(spec), shards_(layout.shards), saved_(saved) {
    if (spec.output_norm) buffer_ = Workspace(context, {shards_.max_rows(), spec.q_width()});
  }

  ConstTensorView Gate(int64_t chunk) const {
    return PartsOf(spec_, ConstTensorView(RowsOf(saved_.proj, shards_.Whole(chunk)))).gate;
  }
  ConstTensorView Squares(int64_t chunk) const {
    return RowsOf(ConstTensorView(saved_.core.squares), shards_.Whole(chunk));
  }

  // mixed [c, H D], valid until the next call.
  ConstTensorView operator()(int64_t chunk) const {
    const RowSpan rows = shards_.Whole(chunk);
    const ConstTensorView out = RowsOf(saved_.core.out, rows);
    if (!spec_.output_norm) return out;
    const TensorView mixed = buffer_.Rows(0, rows.size());
    if (!saved_.core.squares.empty()) {
      SplitNormForward(context_, out, Gate(chunk), Squares(chunk), spec_.norm_columns,
                       spec_.norm_eps, mixed);
    } else if (spec_.gated) {
      GatedRmsNormForward(context_, out, Gate(chunk), spec_.norm_eps, mixed);
    } else {
      RmsNormForward(context_, out, ConstTensorView(), spec_.norm_eps, mixed);
    }
    return mixed;
  }

 private:
  const OpContext& context_;
  const BlockSpec& spec_;
  const TokenShards& shards_;
  const BlockActivations& saved_;
  TensorView buffer_;
};

// Through the output norm and gate, where they span several ranks: dout [T, H D] holds the gradient
// of what entered the projection, and what it is of `out` on return.
void SplitNormBackwardOfAll(const OpContext& context, const BlockSpec& spec,
                            const TokenLayout& layout, const BlockActivations& saved,
                            TensorView dout, TensorView dproj) {
  const ArenaScope scope(context.arena);
  const TensorView dots =
      context.arena.Allocate(context.wide_dtype(), {dout.dim(0)}, MemoryPurpose::kWorkspace);
  const ConstTensorView gate = PartsOf(spec, ConstTensorView(saved.proj)).gate;
  SplitNormDots(context, saved.core.out, gate, saved.core.squares, spec.norm_columns, spec.norm_eps,
                dout, dots);
  layout.shards.axis()->AllReduce(dots, ReduceOp::kSum, "gradient of the output norm");
  SplitNormBackward(context, saved.core.out, gate, saved.core.squares, dots, spec.norm_columns,
                    spec.norm_eps, dout, dout, PartsOf(spec, dproj).gate);
}

}  // namespace

void PostAttentionForward(const OpContext& context, const BlockSpec& spec,
                          const BlockViews<ConstTensorView>& weights, const TokenLayout& layout,
                          const BlockActivations& saved, TensorView y) {
  const ArenaScope scope(context.arena);
  const TokenShards& shards = layout.shards;
  const OutputMix mix(context, spec, layout, saved);
  const ChunkedRows mid_rows(context, shards, saved.x_mid, spec.hidden_size);
  const ChunkedRows normed_rows(context, shards, saved.normed_mid, spec.hidden_size);
  TensorView pair_buffer;
  if (saved.pair.empty()) {
    pair_buffer = Workspace(context, {shards.max_rows(), 2 * spec.intermediate_size});
  }
  const Linear out_proj(context, weights.out_proj, spec.fp8.out_proj, Fp8Layouts::kRows);
  const Linear mlp_pair(context, weights.mlp_pair, spec.fp8.mlp_pair, Fp8Layouts::kRows);
  const Linear mlp_down(context, weights.mlp_down, spec.fp8.mlp_down, Fp8Layouts::kRows);
  TensorView hidden_buffer;
  if (!mlp_down.in_fp8()) {
    hidden_buffer = Workspace(context, {shards.max_rows(), spec.intermediate_size});
  }
  RowParallel out_product(context, shards, spec.hidden_size, "output of attention");
  ChunkGather gather(context, shards, spec.hidden_size, "input of the feed-forward");
  RowParallel down_product(context, shards, spec.hidden_size, "output of the feed-forward");

  const auto project = [&](int64_t chunk) {
    const ArenaScope operands(context.arena);
    out_product.Start(chunk, out_proj, out_proj.Input(mix(chunk), Fp8Layouts::kRows),
                      weights.out_proj_bias, RowsOf(saved.x, shards.Mine(chunk)), mid_rows(chunk));
  };
  const auto normalize = [&](int64_t chunk) {
    out_product.Finish(chunk, RowsOf(saved.x, shards.Mine(chunk)), mid_rows(chunk));
    RmsNormForward(context, mid_rows(chunk), weights.mlp_norm, spec.norm_eps, normed_rows(chunk));
    gather.Start(chunk, normed_rows(chunk));
  };
  const auto feed_forward = [&](int64_t chunk) {
    const ArenaScope operands(context.arena);
    const RowSpan rows = shards.Whole(chunk);
    const TensorView pair =
        saved.pair.empty() ? pair_buffer.Rows(0, rows.size()) : RowsOf(saved.pair, rows);
    mlp_pair.Forward(mlp_pair.Input(gather.Finish(chunk), Fp8Layouts::kRows), weights.mlp_pair_bias,
                     ConstTensorView(), pair);
    const LinearOperand hidden =
        GatedInput(context, spec.unit, pair, mlp_down, RowsOf(hidden_buffer, {0, rows.size()}));
    down_product.Start(chunk, mlp_down, hidden, weights.mlp_down_bias, mid_rows(chunk),
                       RowsOf(y, shards.Mine(chunk)));
  };
  const auto finish = [&](int64_t chunk) {
    down_product.Finish(chunk, mid_rows(chunk), RowsOf(y, shards.Mine(chunk)));
  };
  RunStages(shards, {{0, project}, {2, finish}, {1, feed_forward}, {0, normalize}});
}

void PostAttentionBackward(const OpContext& context, const BlockSpec& spec,
                           const BlockViews<ConstTensorView>& weights,
                           const BlockViews<TensorView>& gradients, const TokenLayout& layout,
                           const BlockActivations& saved, TensorView dx, TensorView dout,
                           TensorView dproj) {
  const ArenaScope scope(context.arena);
  const TokenShards& shards = layout.shards;
  const int64_t width = spec.hidden_size, most = shards.max_rows();
  const bool keeps_mlp = !saved.x_mid.empty();
  const OutputMix mix(context, spec, layout, saved);
  const ChunkedRows mid_rows(context, shards, saved.x_mid, width);
  const ChunkedRows normed_rows(context, shards, saved.normed_mid, width);
  const ChunkedRows dnormed_rows(context, shards, TensorView(), width);
  const TensorView pair_buffer =
      keeps_mlp ? TensorView() : Workspace(context, {most, 2 * spec.intermediate_size});
  const TensorView hidden_buffer = Workspace(context, {most, spec.intermediate_size});
  // Recomputation goes forward through the first two products again.
  const Fp8Layouts uses = keeps_mlp ? Fp8Layouts::kColumns : Fp8Layouts::kBoth;
  const Linear out_proj(context, weights.out_proj, spec.fp8.out_proj, uses);
  const Linear mlp_pair(context, weights.mlp_pair, spec.fp8.mlp_pair, uses);
  const Linear mlp_down(context, weights.mlp_down, spec.fp8.mlp_down, Fp8Layouts::kColumns);
  const bool has_pair_bias = !gradients.mlp_pair_bias.empty();
  TensorView dpair_buffer;
  if (!mlp_pair.in_fp8() || has_pair_bias) {
    dpair_buffer = Workspace(context, {most, 2 * spec.intermediate_size});
  }
  RowParallel out_again(context, shards, width, "output of attention again");
  ChunkGather gather_normed(context, shards, width, "input of the feed-forward again");
  ChunkGather gather_dy(context, shards, width, "gradient of the feed-forward's output");
  ColumnParallelBackward backward(context, shards, width, "gradient of the feed-forward");
  ChunkGather gather_dmid(context, shards, width, "gradient of attention's output");

  const auto begin = [&](int64_t chunk) {
    const RowSpan mine = shards.Mine(chunk);
    gather_dy.Start(chunk, RowsOf(dx, mine));
    if (!keeps_mlp) {
      const ArenaScope operands(context.arena);
      out_again.Start(chunk, out_proj, out_proj.Input(mix(chunk), Fp8Layouts::kRows),
                      weights.out_proj_bias, RowsOf(saved.x, mine), mid_rows(chunk));
      out_again.Finish(chunk, RowsOf(saved.x, mine), mid_rows(chunk));
    }
    if (saved.normed_mid.empty()) {
      RmsNormForward(context, mid_rows(chunk), weights.mlp_norm, spec.norm_eps, normed_rows(chunk));
    }
    gather_normed.Start(chunk, normed_rows(chunk));
  };
  // `hidden` holds its own gradient first, then itself.
  const auto feed_forward = [&](int64_t chunk) {
    const ArenaScope operands(context.arena);
    const RowSpan rows = shards.Whole(chunk);
    const TensorView hidden = hidden_buffer.Rows(0, rows.size());
    const LinearOperand dy = mlp_down.OutputGradient(gather_dy.Finish(chunk));
    const LinearOperand normed = mlp_pair.Input(gather_normed.Finish(chunk), uses);
    TensorView pair = RowsOf(saved.pair, rows);
    if (!keeps_mlp) {
      pair = pair_buffer.Rows(0, rows.size());
      mlp_pair.Forward(normed, weights.mlp_pair_bias, ConstTensorView(), pair);
    }
    mlp_down.BackwardInput(dy, hidden);
    const GatedGradients gated =
        GatedBackward(context, spec.unit, pair, mlp_pair, mlp_down, hidden,
                      RowsOf(dpair_buffer, {0, rows.size()}), has_pair_bias);
    mlp_down.BackwardWeight(dy, gated.h, gradients.mlp_down);
    mlp_pair.BackwardWeight(gated.dpair, normed, gradients.mlp_pair);
    if (has_pair_bias) BiasBackward(context, gated.dpair.wide, gradients.mlp_pair_bias);
    backward.Start(chunk, mlp_pair, gated.dpair, dnormed_rows(chunk));
  };
  // Gradients of what is added or multiplied token by token come from each rank's own tokens.
  const auto add = [&](int64_t chunk) {
    const TensorView dmid = RowsOf(dx, shards.Mine(chunk));
    backward.Finish(chunk);
    if (!gradients.mlp_down_bias.empty()) BiasBackward(context, dmid, gradients.mlp_down_bias);
    RmsNormBackward(context, mid_rows(chunk), weights.mlp_norm, spec.norm_eps, dnormed_rows(chunk),
                    dmid, /*accumulate=*/true, gradients.mlp_norm);
    if (!gradients.out_proj_bias.empty()) BiasBackward(context, dmid, gradients.out_proj_bias);
    gather_dmid.Start(chunk, dmid);
  };
  const auto project = [&](int64_t chunk) {
    const ArenaScope operands(context.arena);
    const RowSpan rows = shards.Whole(chunk);
    const LinearOperand dmid = out_proj.OutputGradient(gather_dmid.Finish(chunk));
    const TensorView dmixed = RowsOf(dout, rows);
    out_proj.BackwardWeight(dmid, out_proj.Input(mix(chunk), Fp8Layouts::kColumns),
                            gradients.out_proj);
    out_proj.BackwardInput(dmid, dmixed);
    if (!saved.core.squares.empty()) return;
    const ConstTensorView out = RowsOf(saved.core.out, rows);
    if (spec.gated) {
      GatedRmsNormBackward(context, out, mix.Gate(chunk), spec.norm_eps, dmixed, dmixed,
                           PartsOf(spec, RowsOf(dproj, rows)).gate);
    } else if (spec.output_norm) {
      RmsNormBackward(context, out, ConstTensorView(), spec.norm_eps, dmixed, dmixed,
                      /*accumulate=*/false, TensorView());
    }
  };
  RunStages(shards, {{0, begin}, {2, add}, {1, feed_forward}, {3, project}});
  if (!saved.core.squares.empty()) {
    SplitNormBackwardOfAll(context, spec, layout, saved, dout, dproj);
  }
}

}  // namespace evenkeel
