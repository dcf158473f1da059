// Matrix products, by OpenBLAS on the CPU.
#pragma once

#include <string>

#include "runtime/ops/op_context.h"

namespace evenkeel {

enum class Transpose : bool { kNo, kYes };

// c = op(a) op(b) + beta c, with op(a) [M, K], op(b) [K, N], c [M, N]. Views of rank 2; rows may be
// strided. An op of a transposed view means the stored matrix is [K, M] (or [N, K]).
void MatMul(const OpContext& context, ConstTensorView a, Transpose transpose_a, ConstTensorView b,
            Transpose transpose_b, double beta, TensorView c);

// Returns OpenBLAS's version and the processor whose kernels it runs, which the environment
// variable OPENBLAS_CORETYPE overrides (to "Haswell", say, at half the speed of an AVX-512
// processor).
std::string DescribeBlas();

// y [T, N] = x [T, K] w^T, w [N, K] as torch.nn.Linear stores it; adds to y if `accumulate`.
inline void LinearForward(const OpContext& context, ConstTensorView x, ConstTensorView w,
                          TensorView y, bool accumulate = false) {
  MatMul(context, x, Transpose::kNo, w, Transpose::kYes, accumulate ? 1 : 0, y);
}

// dx [T, K] = dy [T, N] w; adds to dx if `accumulate`.
inline void LinearBackwardInput(const OpContext& context, ConstTensorView dy, ConstTensorView w,
                                TensorView dx, bool accumulate = false) {
  MatMul(context, dy, Transpose::kNo, w, Transpose::kNo, accumulate ? 1 : 0, dx);
}

// dw [N, K] += dy [T, N]^T x [T, K].
inline void LinearBackwardWeight(const OpContext& context, ConstTensorView dy, ConstTensorView x,
                                 TensorView dw) {
  MatMul(context, dy, Transpose::kYes, x, Transpose::kNo, 1, dw);
}

}  // namespace evenkeel
