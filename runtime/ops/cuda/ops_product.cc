#include "runtime/ops/cuda/cuda_op_context.h"
#include "runtime/ops/cuda/cuda_ops.h"

namespace evenkeel::cuda {
namespace {

void Run(const OpContext& context, const CudaMatMulParams& params) {
  context.cuda->device->Note(context.cuda->matmul.Run(params, StreamOf(context)));
}

CudaMatMulParams ParamsOf(ConstTensorView a, Transpose transpose_a, ConstTensorView b,
                          Transpose transpose_b, TensorView c) {
  EK_CHECK(a.rank() == 2 && b.rank() == 2 && c.rank() == 2 && a.dtype == DType::kBF16 &&
           b.dtype == DType::kBF16 && (c.dtype == DType::kBF16 || c.dtype == DType::kF32))
      << a.shape.ToString() << " " << b.shape.ToString() << " -> " << c.shape.ToString();
  CudaMatMulParams params;
  params.m = c.dim(0);
  params.n = c.dim(1);
  params.k = a.dim(transpose_a == Transpose::kYes ? 0 : 1);
  params.a = a.data;
  params.b = b.data;
  params.transpose_a = transpose_a;
  params.transpose_b = transpose_b;
  params.out = c.data;
  params.float_out = c.dtype == DType::kF32;
  params.a_stride = a.stride(0);
  params.b_stride = b.stride(0);
  params.out_stride = c.stride(0);
  return params;
}

}  // namespace

void MatMul(const OpContext& context, ConstTensorView a, Transpose transpose_a, ConstTensorView b,
            Transpose transpose_b, double beta, TensorView c) {
  CudaMatMulParams params = ParamsOf(a, transpose_a, b, transpose_b, c);
  params.beta = static_cast<float>(beta);
  Run(context, params);
}

void LinearForward(const OpContext& context, ConstTensorView x, ConstTensorView w,
                   ConstTensorView bias, ConstTensorView residual, TensorView y) {
  CudaMatMulParams params = ParamsOf(x, Transpose::kNo, w, Transpose::kYes, y);
  params.bias = bias.data;
  if (!residual.empty()) {
    params.beta = 1.0f;
    params.c = residual.data;
    params.c_stride = residual.stride(0);
  }
  Run(context, params);
}

}  // namespace evenkeel::cuda
