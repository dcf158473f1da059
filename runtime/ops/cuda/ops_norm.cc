#include "runtime/ops/cuda/cuda_op_context.h"
#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/cuda/norm_cuda.h"

namespace evenkeel::cuda {
namespace {

RowStrides StridesOf(const ConstTensorView& view) {
  return {view.stride(0), view.rank() == 3 ? view.stride(1) : 0};
}

struct RowSizes {
  int64_t tokens, heads, columns;
};

RowSizes SizesOf(const ConstTensorView& x) {
  EK_CHECK((x.rank() == 2 || x.rank() == 3) && x.dtype == DType::kBF16) << x.shape.ToString();
  return {x.dim(0), x.rank() == 3 ? x.dim(1) : 1, x.dim(x.rank() - 1)};
}

void Forward(const OpContext& context, const ConstTensorView& x, const ConstTensorView& gain,
             const ConstTensorView& gate, double eps, const TensorView& y) {
  const RowSizes sizes = SizesOf(x);
  RmsNormForwardParams params;
  params.tokens = sizes.tokens;
  params.heads = sizes.heads;
  params.columns = sizes.columns;
  params.eps = static_cast<float>(eps);
  params.x = x.data;
  params.gain = gain.data;
  params.y = y.data;
  params.x_strides = StridesOf(x);
  params.y_strides = StridesOf(y);
  if (!gate.empty()) {
    params.gate = gate.data;
    params.gate_strides = StridesOf(gate);
  }
  Note(context, LaunchRmsNormForward(params, StreamOf(context)), "RmsNormForward");
}

RmsNormBackwardParams BackwardParams(const ConstTensorView& x, double eps,
                                     const ConstTensorView& dy, const TensorView& dx) {
  const RowSizes sizes = SizesOf(x);
  RmsNormBackwardParams params;
  params.tokens = sizes.tokens;
  params.heads = sizes.heads;
  params.columns = sizes.columns;
  params.eps = static_cast<float>(eps);
  params.x = x.data;
  params.dy = dy.data;
  params.dx = dx.data;
  params.x_strides = StridesOf(x);
  params.dy_strides = StridesOf(dy);
  params.dx_strides = StridesOf(dx);
  return params;
}

}  // namespace

void RmsNormForward(const OpContext& context, ConstTensorView x, ConstTensorView gain, double eps,
                    TensorView y) {
  Forward(context, x, gain, ConstTensorView(), eps, y);
}

void GatedRmsNormForward(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                         double eps, TensorView y) {
  Forward(context, x, ConstTensorView(), gate, eps, y);
}

void RmsNormBackward(const OpContext& context, ConstTensorView x, ConstTensorView gain, double eps,
                     ConstTensorView dy, TensorView dx, bool accumulate, TensorView dgain) {
  const ArenaScope scope(context.arena);
  RmsNormBackwardParams params = BackwardParams(x, eps, dy, dx);
  if (accumulate) {
    params.dresidual = dx.data;
    params.dresidual_strides = StridesOf(dx);
  }
  if (!gain.empty()) {
    params.gain = gain.data;
    params.dgain = dgain.as<float>();
    params.workspace = Scratch(
        context, RmsNormBackwardWorkspaceBytes(params.tokens * params.heads, params.columns));
  }
  Note(context, LaunchRmsNormBackward(params, StreamOf(context)), "RmsNormBackward");
}

void GatedRmsNormBackward(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                          double eps, ConstTensorView dy, TensorView dx, TensorView dgate) {
  RmsNormBackwardParams params = BackwardParams(x, eps, dy, dx);
  params.gate = gate.data;
  params.gate_strides = StridesOf(gate);
  params.dgate = dgate.data;
  params.dgate_strides = StridesOf(dgate);
  Note(context, LaunchRmsNormBackward(params, StreamOf(context)), "GatedRmsNormBackward");
}

}  // namespace evenkeel::cuda
