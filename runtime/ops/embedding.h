// Token embedding: a gather, and its gradient.
#pragma once

#include <cstdint>

#include "runtime/ops/mirrored_array.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// A token that has no row in this table, as those of other ranks have none where a vocabulary is
// split: a row of zeros, and no gradient.
inline constexpr int32_t kNoToken = -1;

// y [T, C] = scale * table[tokens[t]]; table [V, C]; every token is in [0, V) or kNoToken (checked
// where the tokens enter the program, not here).
void EmbeddingForward(const OpContext& context, ConstTensorView table, Indices tokens, double scale,
                      TensorView y);

// dtable[tokens[t]] += scale * dy[t], for t in ascending order within each token.
void EmbeddingBackward(const OpContext& context, Indices tokens, double scale, ConstTensorView dy,
                       TensorView dtable);

}  // namespace evenkeel
