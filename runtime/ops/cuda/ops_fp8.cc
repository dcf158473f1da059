#include "runtime/ops/cuda/cuda_op_context.h"
#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/cuda/fp8_cast_cuda.h"
#include "runtime/ops/fp8.h"

namespace evenkeel::cuda {
namespace {

bool IsE5M2(const Fp8Slot& slot) {
  return slot.format() == DType::kF8E5M2;
}

// Without `writes` the values are only measured.
Fp8Target TargetOf(const Fp8Operand& operand, bool writes) {
  Fp8Target target;
  if (writes) {
    target.rows = operand.rows.data;
    target.columns = operand.columns.data;
  }
  target.amax = operand.slot.scales->amax(operand.slot.index);
  target.scale = operand.slot.scales->scale(operand.slot.index);
  return target;
}

void MakeScale(const OpContext& context, const Fp8Operand& operand) {
  const Fp8Slot& slot = operand.slot;
  Note(context,
       LaunchFp8Scale(slot.scales->amax(slot.index), IsE5M2(slot), slot.scales->scale(slot.index),
                      slot.scales->inverse(slot.index), StreamOf(context)),
       "Fp8Scale");
}

void GatedUnitFp8(const OpContext& context, Fp8GatedUnitParams params, const Fp8Operand* dpair,
                  const Fp8Operand& h, const char* name) {
  const auto run = [&](bool writes) {
    params.h = TargetOf(h, writes);
    if (dpair != nullptr) params.dpair = TargetOf(*dpair, writes);
    Note(context, LaunchFp8GatedUnit(params, StreamOf(context)), name);
  };
  if (h.slot.scales->is_calibrating()) {
    run(false);
    MakeScale(context, h);
    if (dpair != nullptr) MakeScale(context, *dpair);
  }
  run(true);
}

// c [M, N] = a [M, K] b [N, K]^T, both by rows of what is summed over.
CudaMatMulParams ParamsOf(ConstTensorView a, const Fp8Slot& a_slot, ConstTensorView b,
                          const Fp8Slot& b_slot, TensorView c) {
  EK_CHECK(!a.empty() && !b.empty() && a.dim(1) == b.dim(1) && c.dim(0) == a.dim(0) &&
           c.dim(1) == b.dim(0))
      << a.shape.ToString() << " " << b.shape.ToString() << " -> " << c.shape.ToString();
  CudaMatMulParams params;
  params.m = c.dim(0);
  params.n = c.dim(1);
  params.k = a.dim(1);
  params.a = a.data;
  params.b = b.data;
  params.a_type = a.dtype;
  params.b_type = b.dtype;
  params.a_scale = a_slot.scales->inverse(a_slot.index);
  params.b_scale = b_slot.scales->inverse(b_slot.index);
  params.transpose_b = Transpose::kYes;
  params.out = c.data;
  params.float_out = c.dtype == DType::kF32;
  params.a_stride = a.stride(0);
  params.b_stride = b.stride(0);
  params.out_stride = c.stride(0);
  return params;
}

void Run(const OpContext& context, const CudaMatMulParams& params) {
  context.cuda->device->Note(context.cuda->matmul.Run(params, StreamOf(context)));
}

}  // namespace

void CastToFp8(const OpContext& context, ConstTensorView x, const Fp8Operand& to) {
  EK_CHECK(x.rank() == 2 && x.dtype == DType::kBF16) << x.shape.ToString();
  Fp8CastParams params;
  params.tokens = x.dim(0);
  params.columns = x.dim(1);
  params.x = x.data;
  params.x_stride = x.stride(0);
  params.is_e5m2 = IsE5M2(to.slot);
  const auto run = [&](bool writes) {
    params.y = TargetOf(to, writes);
    Note(context, LaunchFp8Cast(params, StreamOf(context)), "CastToFp8");
  };
  if (to.slot.scales->is_calibrating()) {
    run(false);
    MakeScale(context, to);
  }
  run(true);
}

void GatedUnitForwardFp8(const OpContext& context, GatedUnit unit, ConstTensorView pair,
                         const Fp8Operand& h) {
  Fp8GatedUnitParams params;
  params.unit = unit;
  params.tokens = pair.dim(0);
  params.columns = pair.dim(1) / 2;
  params.pair = pair.data;
  params.pair_stride = pair.stride(0);
  GatedUnitFp8(context, params, nullptr, h, "GatedUnitForwardFp8");
}

void GatedUnitBackwardFp8(const OpContext& context, GatedUnit unit, ConstTensorView pair,
                          ConstTensorView dh, const Fp8Operand& dpair, const Fp8Operand& h) {
  Fp8GatedUnitParams params;
  params.unit = unit;
  params.tokens = pair.dim(0);
  params.columns = pair.dim(1) / 2;
  params.pair = pair.data;
  params.pair_stride = pair.stride(0);
  params.dh = dh.data;
  params.dh_stride = dh.stride(0);
  GatedUnitFp8(context, params, &dpair, h, "GatedUnitBackwardFp8");
}

void LinearForwardFp8(const OpContext& context, const Fp8Operand& x, const Fp8Operand& w,
                      ConstTensorView bias, ConstTensorView residual, TensorView y) {
  CudaMatMulParams params = ParamsOf(x.rows, x.slot, w.rows, w.slot, y);
  params.bias = bias.data;
  params.short_sums = true;
  if (!residual.empty()) {
    params.beta = 1.0f;
    params.c = residual.data;
    params.c_stride = residual.stride(0);
  }
  Run(context, params);
}

void LinearBackwardInputFp8(const OpContext& context, const Fp8Operand& dy, const Fp8Operand& w,
                            TensorView dx) {
  CudaMatMulParams params = ParamsOf(dy.rows, dy.slot, w.columns, w.slot, dx);
  params.short_sums = true;
  Run(context, params);
}

void LinearBackwardWeightFp8(const OpContext& context, const Fp8Operand& dy, const Fp8Operand& x,
                             TensorView dw) {
  CudaMatMulParams params = ParamsOf(dy.columns, dy.slot, x.columns, x.slot, dw);
  params.beta = 1.0f;
  Run(context, params);
}

}  // namespace evenkeel::cuda
