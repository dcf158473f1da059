// Plain element-wise arithmetic and row reductions. Views are [T, C] (rows may be strided) or any
// dense shape; all views of a call have the same shape.
#pragma once

#include "absl/types/span.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Also on a GPU: SetZero, Copy, Add, AddWide, BiasBackward, AddSum, AddSquares. The others are what
// ops on the CPU are made of.

void SetZero(const OpContext& context, TensorView x);
// y = x; any dtype on a GPU.
void Copy(const OpContext& context, ConstTensorView x, TensorView y);
// y = a + b, all of one dtype; y may be a or b.
void Add(const OpContext& context, ConstTensorView a, ConstTensorView b, TensorView y);
// sum += x; sum is of the context's wide dtype, x of that or of the context's dtype.
void AddWide(const OpContext& context, ConstTensorView x, TensorView sum);
// y = a b; y may be a or b.
void Multiply(const OpContext& context, ConstTensorView a, ConstTensorView b, TensorView y);
// x *= factor
void Scale(const OpContext& context, double factor, TensorView x);

// x [T, C] += bias [C] in every row.
void AddBias(const OpContext& context, ConstTensorView bias, TensorView x);
// dbias [C] += sum of the rows of dy [T, C], in an order that depends on the shape alone.
void BiasBackward(const OpContext& context, ConstTensorView dy, TensorView dbias);

// sum [1] (float64) += the sum of x, or of its squares, added up in float64 in an order that
// depends on the size alone. x is dense; AddSum takes losses as cross_entropy.h makes them.
void AddSum(const OpContext& context, ConstTensorView x, TensorView sum);
void AddSquares(const OpContext& context, ConstTensorView x, TensorView sum);

}  // namespace evenkeel
