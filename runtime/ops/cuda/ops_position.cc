#include "runtime/ops/cuda/cuda_op_context.h"
#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/cuda/position_cuda.h"
#include "runtime/ops/cuda/urpe_cuda.h"

namespace evenkeel::cuda {
namespace {

void CheckHeads(const ConstTensorView& x) {
  EK_CHECK(x.rank() == 3 && x.dtype == DType::kBF16 && (x.dim(1) == 1 || x.stride(1) == x.dim(2)))
      << x.shape.ToString();
}

LrpeParams LrpeParamsOf(const OpContext& context, Activation activation, const ConstTensorView& x,
                        const ConstTensorView& theta, const Positions& positions) {
  CheckHeads(x);
  LrpeParams params;
  params.activation = activation;
  params.tokens = x.dim(0);
  params.heads = x.dim(1);
  params.head_dim = x.dim(2);
  params.positions = cuda::Mirror(context, positions).device;
  params.theta = theta.as<float>();
  params.x = x.data;
  params.x_stride = x.stride(0);
  return params;
}

}  // namespace

void RopeTable(const OpContext& context, Positions positions,
               absl::Span<const double> inverse_frequencies, double attention_factor,
               TensorView cos, TensorView sin) {
  EK_CHECK(cos.is_dense() && sin.is_dense() && cos.dim(0) == positions.size() &&
           cos.dim(1) == static_cast<int64_t>(inverse_frequencies.size()))
      << cos.shape.ToString();
  const ArenaScope scope(context.arena);
  const TensorView frequencies = context.arena.Allocate(
      DType::kF64, {static_cast<int64_t>(inverse_frequencies.size())}, MemoryPurpose::kWorkspace);
  context.cuda->device->Upload(inverse_frequencies.data(), frequencies.data,
                               static_cast<int64_t>(inverse_frequencies.size() * sizeof(double)));
  RopeTableParams params;
  params.tokens = positions.size();
  params.head_dim = 2 * cos.dim(1);
  params.positions = cuda::Mirror(context, positions).device;
  params.inverse_frequencies = frequencies.as<double>();
  params.attention_factor = attention_factor;
  params.cos = cos.as<float>();
  params.sin = sin.as<float>();
  Note(context, LaunchRopeTable(params, StreamOf(context)), "RopeTable");
}

void ApplyRope(const OpContext& context, ConstTensorView cos, ConstTensorView sin, bool inverse,
               TensorView x) {
  CheckHeads(x);
  EK_CHECK(cos.is_dense() && sin.is_dense() && cos.dim(0) == x.dim(0) && 2 * cos.dim(1) == x.dim(2))
      << x.shape.ToString() << " by " << cos.shape.ToString();
  RopeParams params;
  params.tokens = x.dim(0);
  params.heads = x.dim(1);
  params.head_dim = x.dim(2);
  params.cos = cos.as<float>();
  params.sin = sin.as<float>();
  params.x = x.data;
  params.stride = x.stride(0);
  params.inverse = inverse;
  Note(context, LaunchRope(params, StreamOf(context)), "ApplyRope");
}

void ActivatedLrpeForward(const OpContext& context, Activation activation, ConstTensorView x,
                          ConstTensorView theta, Positions positions, TensorView y) {
  const ArenaScope scope(context.arena);
  LrpeParams params = LrpeParamsOf(context, activation, x, theta, positions);
  CheckHeads(y);
  params.y = y.data;
  params.y_stride = y.stride(0);
  Note(context, LaunchLrpeForward(params, StreamOf(context)), "LrpeForward");
}

void ActivatedLrpeBackward(const OpContext& context, Activation activation, ConstTensorView x,
                           ConstTensorView theta, Positions positions, ConstTensorView dy,
                           TensorView dx, TensorView dtheta) {
  const ArenaScope scope(context.arena);
  LrpeParams params = LrpeParamsOf(context, activation, x, theta, positions);
  CheckHeads(dy);
  CheckHeads(dx);
  params.dy = dy.data;
  params.dy_stride = dy.stride(0);
  params.dx = dx.data;
  params.dx_stride = dx.stride(0);
  params.dtheta = dtheta.as<float>();
  params.workspace =
      Scratch(context, LrpeBackwardWorkspaceBytes(params.tokens, params.heads, params.head_dim));
  Note(context, LaunchLrpeBackward(params, StreamOf(context)), "LrpeBackward");
}

void UrpeForward(const OpContext& context, ConstTensorView x, ConstTensorView theta,
                 ConstTensorView reflection, Positions positions, TensorView y) {
  CheckHeads(x);
  CheckHeads(y);
  const ArenaScope scope(context.arena);
  UrpeForwardParams params;
  params.tokens = x.dim(0);
  params.heads = x.dim(1);
  params.head_dim = x.dim(2);
  params.positions = cuda::Mirror(context, positions).device;
  params.theta = theta.as<float>();
  params.reflection = reflection.as<float>();
  params.x = x.data;
  params.y = y.data;
  params.x_stride = x.stride(0);
  params.y_stride = y.stride(0);
  Note(context, LaunchUrpeForward(params, StreamOf(context)), "UrpeForward");
}

void UrpeBackward(const OpContext& context, ConstTensorView y, ConstTensorView theta,
                  ConstTensorView reflection, Positions positions, ConstTensorView dy,
                  TensorView dx, TensorView dtheta) {
  CheckHeads(y);
  CheckHeads(dy);
  CheckHeads(dx);
  const ArenaScope scope(context.arena);
  UrpeBackwardParams params;
  params.tokens = y.dim(0);
  params.heads = y.dim(1);
  params.head_dim = y.dim(2);
  params.positions = cuda::Mirror(context, positions).device;
  params.theta = theta.as<float>();
  params.reflection = reflection.as<float>();
  params.y = y.data;
  params.dy = dy.data;
  params.dx = dx.data;
  params.dtheta = dtheta.as<float>();
  params.workspace = Scratch(context, UrpeBackwardWorkspaceBytes(params.tokens, params.head_dim));
  params.y_stride = y.stride(0);
  params.dy_stride = dy.stride(0);
  params.dx_stride = dx.stride(0);
  Note(context, LaunchUrpeBackward(params, StreamOf(context)), "UrpeBackward");
}

}  // namespace evenkeel::cuda
