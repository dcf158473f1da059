// Random numbers by a counter (runtime/base/philox.h).
#pragma once

#include <cstdint>

#include "runtime/ops/op_context.h"

namespace evenkeel {

// y [n] = scale * normal values number first, first + 1, ... of (seed, stream), computed in
// float64. y is dense, float32 or float64 (on a GPU float32). A GPU's logarithm and cosine may
// differ from the host's in the last bit of float64, so that very few values are rounded otherwise.
void FillNormal(const OpContext& context, uint64_t seed, uint64_t stream, int64_t first,
                double scale, TensorView y);

}  // namespace evenkeel
