// Matrix products in FP8 on a GPU (compute capability 8.9 and later): operands with one scale a
// tensor, sums in float32, results in bf16 or float32. There is no CPU code for these.
//
// Tensor cores take FP8 only with the dimension that is summed over contiguous in both operands. So
// a tensor may be wanted as it is and transposed: y = x w^T sums over columns of x, dw = dy^T x
// over its rows.
#pragma once

#include "runtime/ops/activation_kind.h"
#include "runtime/ops/fp8_scales.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// A matrix [T, C] in FP8. Either layout may be missing.
struct Fp8Operand {
  TensorView rows;     // [T, C]
  TensorView columns;  // [C, T'], its transpose; T' is T rounded up to a multiple of 16, and what
                       // was added is zero
  Fp8Slot slot;
};

// Bit flags: which layouts are made.
enum class Fp8Layouts : int { kRows = 1, kColumns = 2, kBoth = 3 };

// Room for a matrix [T, C] in the arena. C must be a multiple of 16.
Fp8Operand AllocateFp8(const OpContext& context, Fp8Slot slot, int64_t rows, int64_t columns,
                       Fp8Layouts layouts);

// Fills the layouts that `to` has with x [T, C] (bf16), scaled, and notes its largest value.
void CastToFp8(const OpContext& context, ConstTensorView x, const Fp8Operand& to);

// GatedUnitForward (activation.h) with h [T, F] in FP8, not rounded to bf16 on the way.
void GatedUnitForwardFp8(const OpContext& context, GatedUnit unit, ConstTensorView pair,
                         const Fp8Operand& h);
// GatedUnitBackward with dpair [T, 2 F] and h in FP8.
void GatedUnitBackwardFp8(const OpContext& context, GatedUnit unit, ConstTensorView pair,
                          ConstTensorView dh, const Fp8Operand& dpair, const Fp8Operand& h);

// The products of matmul.h. y [T, N] = x w^T + bias + residual: x [T, K] and w [N, K] by their
// rows.
void LinearForwardFp8(const OpContext& context, const Fp8Operand& x, const Fp8Operand& w,
                      ConstTensorView bias, ConstTensorView residual, TensorView y);
// dx [T, K] = dy w: dy [T, N] by its rows, w by its columns.
void LinearBackwardInputFp8(const OpContext& context, const Fp8Operand& dy, const Fp8Operand& w,
                            TensorView dx);
// dw [N, K] (float32) += dy^T x: both by their columns. Sums over many tokens: in full float32,
// where the other two use the tensor cores' faster, shorter sums.
void LinearBackwardWeightFp8(const OpContext& context, const Fp8Operand& dy, const Fp8Operand& x,
                             TensorView dw);

// Fails with kInvalidArgument if the context's GPU has no FP8.
absl::Status CheckFp8(const OpContext& context);

}  // namespace evenkeel
