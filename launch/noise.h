// Numbers to measure with.
#pragma once

#include "runtime/ops/op_context.h"

namespace evenkeel {

// Fills x [rows, columns], dense, with numbers between -1 and 1 that repeat after some rows: zeros
// would cost a GPU less power, so it would run faster.
void FillWithNoise(const OpContext& context, const TensorView& x);

}  // namespace evenkeel
