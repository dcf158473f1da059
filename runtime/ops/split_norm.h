// Root-mean-square norm, and gate, of rows whose columns are split over ranks: TransNormerLLM's
// output norm under tensor parallelism. Exact, by two sums over the ranks of one number a token.
//   forward:   sums = sum over ranks of RowSquares;    r = rsqrt(sums / columns + eps);  y = x r
//   gate backward:  xh = x r;  dots = sum over ranks of SplitNormDots = sum over columns of xh dy
//   gate
//              dx = r (dy gate - xh dots / columns);   dgate = dy xh
// Where one rank has all columns this is norm.h's GatedRmsNorm, or RmsNorm without a gain.
//
// x, gate, y, dy, dx, dgate [T, C]: this rank's C columns of a row; rows may be strided, and the
// gate is empty where there is none. sums, dots [T]: dense, of the context's wide dtype. `columns`
// counts those of all ranks.
#pragma once

#include <cstdint>

#include "runtime/ops/op_context.h"

namespace evenkeel {

// sums = sum over the columns here of x^2.
void RowSquares(const OpContext& context, ConstTensorView x, TensorView sums);

// sums: of all ranks. y may be x or gate.
void SplitNormForward(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                      ConstTensorView sums, int64_t columns, double eps, TensorView y);

// dots = sum over the columns here of xh dy gate. sums: of all ranks.
void SplitNormDots(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                   ConstTensorView sums, int64_t columns, double eps, ConstTensorView dy,
                   TensorView dots);

// sums, dots: of all ranks. dgate is empty when gate is. dx may be dy; dgate may be gate, not dx.
void SplitNormBackward(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                       ConstTensorView sums, ConstTensorView dots, int64_t columns, double eps,
                       ConstTensorView dy, TensorView dx, TensorView dgate);

}  // namespace evenkeel
