// One of a block's four products with a weight, y = x w^T + bias + residual, and its two gradients:
// in the context's dtype or, where the layer has places among FP8 scales (BlockSpec::fp8), in FP8.
// Private to models/.
//
// A product takes operands, made once and used by all products that want them: the gradient of y
// enters both gradients. What an operand or a weight is in FP8 lives in the context's arena, until
// the scope in which it was made ends.
#pragma once

#include "models/block_spec.h"
#include "runtime/ops/activation.h"
#include "runtime/ops/fp8.h"
#include "runtime/ops/matmul.h"

namespace evenkeel {

struct LinearOperand {
  ConstTensorView wide;  // in the context's dtype; empty if it was made in FP8 alone
  Fp8Operand fp8;
};

class Linear {
 public:
  // w [N, K]. `uses`: kRows for Forward, kColumns for BackwardInput.
  Linear(const OpContext& context, ConstTensorView w, const Fp8LinearSlots& slots, Fp8Layouts uses)
      : context_(context), w_{w, {}}, slots_(slots) {
    if (in_fp8()) w_.fp8 = Cast(w, slots.w, uses);
  }

  bool in_fp8() const { return static_cast<bool>(slots_.w); }
  const Fp8LinearSlots& slots() const { return slots_; }

  // x [T, K]: kRows for Forward, kColumns for BackwardWeight.
  LinearOperand Input(ConstTensorView x, Fp8Layouts uses) const {
    return in_fp8() ? LinearOperand{x, Cast(x, slots_.x, uses)} : LinearOperand{x, {}};
  }
  // dy [T, N], for both gradients.
  LinearOperand OutputGradient(ConstTensorView dy) const {
    return in_fp8() ? LinearOperand{dy, Cast(dy, slots_.dy, Fp8Layouts::kBoth)}
                    : LinearOperand{dy, {}};
  }

  // As LinearForward, LinearBackwardInput and LinearBackwardWeight (runtime/ops/matmul.h).
  void Forward(const LinearOperand& x, ConstTensorView bias, ConstTensorView residual,
               TensorView y) const {
    if (in_fp8()) return LinearForwardFp8(context_, x.fp8, w_.fp8, bias, residual, y);
    LinearForward(context_, x.wide, w_.wide, bias, residual, y);
  }
  void BackwardInput(const LinearOperand& dy, TensorView dx) const {
    if (in_fp8()) return LinearBackwardInputFp8(context_, dy.fp8, w_.fp8, dx);
    LinearBackwardInput(context_, dy.wide, w_.wide, dx);
  }
  void BackwardWeight(const LinearOperand& dy, const LinearOperand& x, TensorView dw) const {
    if (in_fp8()) return LinearBackwardWeightFp8(context_, dy.fp8, x.fp8, dw);
    LinearBackwardWeight(context_, dy.wide, x.wide, dw);
  }

 private:
  Fp8Operand Cast(ConstTensorView x, const Fp8Slot& slot, Fp8Layouts layouts) const {
    const Fp8Operand to = AllocateFp8(context_, slot, x.dim(0), x.dim(1), layouts);
    CastToFp8(context_, x, to);
    return to;
  }

  const OpContext& context_;
  LinearOperand w_;
  Fp8LinearSlots slots_;
};

// The gated unit between two products: h [T, F], which enters `down`, from pair [T, 2 F]. `buffer`
// [T, F] holds it where `down` is not in FP8.
inline LinearOperand GatedInput(const OpContext& context, GatedUnit unit, ConstTensorView pair,
                                const Linear& down, TensorView buffer) {
  if (!down.in_fp8()) {
    GatedUnitForward(context, unit, pair, buffer);
    return {buffer, {}};
  }
  const Fp8Operand h =
      AllocateFp8(context, down.slots().x, pair.dim(0), pair.dim(1) / 2, Fp8Layouts::kRows);
  GatedUnitForwardFp8(context, unit, pair, h);
  return {ConstTensorView(), h};
}

struct GatedGradients {
  LinearOperand dpair;  // of up's output
  LinearOperand h;      // what entered down, for the gradient of its weight
};

// Backward through the unit: `dh` [T, F] is the gradient of h, overwritten. `dpair` [T, 2 F] is
// filled where `up` is not in FP8 or `wants_wide`.
inline GatedGradients GatedBackward(const OpContext& context, GatedUnit unit, ConstTensorView pair,
                                    const Linear& up, const Linear& down, TensorView dh,
                                    TensorView dpair, bool wants_wide) {
  if (!up.in_fp8() || wants_wide) {
    GatedUnitBackward(context, unit, pair, dh, dpair, dh);
    return {up.OutputGradient(dpair), down.Input(dh, Fp8Layouts::kColumns)};
  }
  const int64_t tokens = pair.dim(0), columns = pair.dim(1) / 2;
  GatedGradients result;
  result.dpair.fp8 = AllocateFp8(context, up.slots().dy, tokens, 2 * columns, Fp8Layouts::kBoth);
  result.h.fp8 = AllocateFp8(context, down.slots().x, tokens, columns, Fp8Layouts::kColumns);
  GatedUnitBackwardFp8(context, unit, pair, dh, result.dpair.fp8, result.h.fp8);
  return result;
}

}  // namespace evenkeel
