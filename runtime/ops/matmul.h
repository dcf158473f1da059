// Matrix products, by OpenBLAS on the CPU and cuBLASLt on a GPU.
#pragma once

#include <string>

#include "runtime/ops/op_context.h"

namespace evenkeel {

enum class Transpose : bool { kNo, kYes };

// c = op(a) op(b) + beta c, with op(a) [M, K], op(b) [K, N], c [M, N]. Views of rank 2; rows may be
// strided. An op of a transposed view means the stored matrix is [K, M] (or [N, K]). On a GPU a and
// b are bf16, c is bf16 or float32.
void MatMul(const OpContext& context, ConstTensorView a, Transpose transpose_a, ConstTensorView b,
            Transpose transpose_b, double beta, TensorView c);

// Returns OpenBLAS's version and the processor whose kernels it runs, which the environment
// variable OPENBLAS_CORETYPE overrides (to "Haswell", say, at half the speed of an AVX-512
// processor).
std::string DescribeBlas();

// y [T, N] = x [T, K] w^T + bias + residual, w [N, K] as torch.nn.Linear stores it; bias [N] and
// residual [T, N] may be empty, and y may be residual.
void LinearForward(const OpContext& context, ConstTensorView x, ConstTensorView w,
                   ConstTensorView bias, ConstTensorView residual, TensorView y);

// y [T, N] = x [T, K] w^T
inline void LinearForward(const OpContext& context, ConstTensorView x, ConstTensorView w,
                          TensorView y) {
  LinearForward(context, x, w, ConstTensorView(), ConstTensorView(), y);
}

// dx [T, K] = dy [T, N] w
inline void LinearBackwardInput(const OpContext& context, ConstTensorView dy, ConstTensorView w,
                                TensorView dx) {
  MatMul(context, dy, Transpose::kNo, w, Transpose::kNo, 0, dx);
}

// dw [N, K] += dy [T, N]^T x [T, K].
inline void LinearBackwardWeight(const OpContext& context, ConstTensorView dy, ConstTensorView x,
                                 TensorView dw) {
  MatMul(context, dy, Transpose::kYes, x, Transpose::kNo, 1, dw);
}

}  // namespace evenkeel
