// Ops of ranks that share rows: slices of the vocabulary, columns of a norm.
#include "runtime/ops/cuda/cross_entropy_slices_cuda.h"
#include "runtime/ops/cuda/cuda_op_context.h"
#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/cuda/split_norm_cuda.h"

namespace evenkeel::cuda {
namespace {

void CheckBf16(const ConstTensorView& view) {
  EK_CHECK(view.rank() == 2 && view.dtype == DType::kBF16) << view.shape.ToString();
}

SplitNormRows RowsOf(const ConstTensorView& x, const ConstTensorView& gate,
                     const ConstTensorView& sums, int64_t columns, double eps) {
  CheckBf16(x);
  EK_CHECK(columns > 0 && sums.is_dense() && sums.num_elements() == x.dim(0))
      << x.shape.ToString() << " of " << columns << " columns, " << sums.shape.ToString();
  SplitNormRows rows;
  rows.tokens = x.dim(0);
  rows.columns = x.dim(1);
  rows.all_columns = static_cast<float>(columns);
  rows.eps = static_cast<float>(eps);
  rows.x = x.data;
  rows.sums = sums.as<float>();
  rows.x_stride = x.stride(0);
  if (!gate.empty()) {
    CheckBf16(gate);
    EK_CHECK(gate.shape == x.shape) << x.shape.ToString() << " " << gate.shape.ToString();
    rows.gate = gate.data;
    rows.gate_stride = gate.stride(0);
  }
  return rows;
}

// Elements between the rows of an operand of x's shape.
int64_t StrideBeside(const ConstTensorView& x, const ConstTensorView& view) {
  CheckBf16(view);
  EK_CHECK(view.shape == x.shape) << x.shape.ToString() << " " << view.shape.ToString();
  return view.stride(0);
}

}  // namespace

void CrossEntropySliceStatistics(const OpContext& context, ConstTensorView logits, Indices targets,
                                 int64_t vocab_begin, TensorView statistics) {
  CheckBf16(logits);
  EK_CHECK(logits.dim(0) == targets.size() && statistics.is_dense() &&
           statistics.num_elements() == 3 * targets.size())
      << logits.shape.ToString() << " " << targets.size() << " " << statistics.shape.ToString();
  const ArenaScope scope(context.arena);
  CrossEntropySliceStatisticsParams params;
  params.tokens = targets.size();
  params.vocab = logits.dim(1);
  params.vocab_begin = vocab_begin;
  params.logits = logits.data;
  params.stride = logits.stride(0);
  params.targets = cuda::Mirror(context, targets).device;
  params.statistics = statistics.as<float>();
  Note(context, LaunchCrossEntropySliceStatistics(params, StreamOf(context)),
       "CrossEntropySliceStatistics");
}

void CrossEntropySliceGradient(const OpContext& context, ConstTensorView all, Indices targets,
                               int64_t vocab_begin, double scale, TensorView logits,
                               TensorView losses) {
  EK_CHECK(all.rank() == 3 && all.is_dense() && all.dim(1) == targets.size() && all.dim(2) == 3 &&
           losses.is_dense() && losses.num_elements() == targets.size())
      << all.shape.ToString() << " " << targets.size() << " " << losses.shape.ToString();
  const ArenaScope scope(context.arena);
  CrossEntropySliceGradientParams params;
  params.tokens = targets.size();
  params.slices = all.dim(0);
  params.vocab_begin = vocab_begin;
  params.all = all.as<float>();
  params.targets = cuda::Mirror(context, targets).device;
  params.scale = static_cast<float>(scale);
  params.losses = losses.as<float>();
  if (!logits.empty()) {
    CheckBf16(logits);
    EK_CHECK(logits.dim(0) == targets.size()) << logits.shape.ToString();
    params.vocab = logits.dim(1);
    params.logits = logits.data;
    params.stride = logits.stride(0);
  }
  Note(context, LaunchCrossEntropySliceGradient(params, StreamOf(context)),
       "CrossEntropySliceGradient");
}

void RowSquares(const OpContext& context, ConstTensorView x, TensorView sums) {
  CheckBf16(x);
  EK_CHECK(sums.is_dense() && sums.num_elements() == x.dim(0))
      << x.shape.ToString() << " -> " << sums.shape.ToString();
  RowSquaresParams params;
  params.tokens = x.dim(0);
  params.columns = x.dim(1);
  params.x = x.data;
  params.x_stride = x.stride(0);
  params.sums = sums.as<float>();
  Note(context, LaunchRowSquares(params, StreamOf(context)), "RowSquares");
}

void SplitNormForward(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                      ConstTensorView sums, int64_t columns, double eps, TensorView y) {
  SplitNormForwardParams params;
  params.rows = RowsOf(x, gate, sums, columns, eps);
  params.y = y.data;
  params.y_stride = StrideBeside(x, y);
  Note(context, LaunchSplitNormForward(params, StreamOf(context)), "SplitNormForward");
}

void SplitNormDots(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                   ConstTensorView sums, int64_t columns, double eps, ConstTensorView dy,
                   TensorView dots) {
  EK_CHECK(dots.is_dense() && dots.num_elements() == x.dim(0)) << dots.shape.ToString();
  SplitNormDotsParams params;
  params.rows = RowsOf(x, gate, sums, columns, eps);
  params.dy = dy.data;
  params.dy_stride = StrideBeside(x, dy);
  params.dots = dots.as<float>();
  Note(context, LaunchSplitNormDots(params, StreamOf(context)), "SplitNormDots");
}

void SplitNormBackward(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                       ConstTensorView sums, ConstTensorView dots, int64_t columns, double eps,
                       ConstTensorView dy, TensorView dx, TensorView dgate) {
  EK_CHECK(dots.is_dense() && dots.num_elements() == x.dim(0)) << dots.shape.ToString();
  SplitNormBackwardParams params;
  params.rows = RowsOf(x, gate, sums, columns, eps);
  params.dy = dy.data;
  params.dots = dots.as<float>();
  params.dx = dx.data;
  params.dy_stride = StrideBeside(x, dy);
  params.dx_stride = StrideBeside(x, dx);
  if (!dgate.empty()) {
    params.dgate = dgate.data;
    params.dgate_stride = StrideBeside(x, dgate);
  }
  Note(context, LaunchSplitNormBackward(params, StreamOf(context)), "SplitNormBackward");
}

}  // namespace evenkeel::cuda
