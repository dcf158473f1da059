// Cross-entropy over the vocabulary, with the gradient made in the same pass over the logits. The
// caller feeds it a chunk of tokens at a time, so the logits of all tokens never exist at once.
//   loss_t = logsumexp(z_t) - z_t[target_t];   dz_t = scale (softmax(z_t) - onehot(target_t))
#pragma once

#include <cstdint>

#include "runtime/base/token_target.h"
#include "runtime/ops/mirrored_array.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// logits [T, V]; targets [T], each in [0, V) or kIgnoredTarget; losses [T], dense: float64
// on the CPU whatever the dtype, float32 on a GPU. Replaces logits by their gradient. NaN logits
// give NaN losses.
void CrossEntropyForwardBackward(const OpContext& context, Indices targets, double scale,
                                 TensorView logits, TensorView losses);

// The losses alone; logits are only read.
void CrossEntropyForward(const OpContext& context, ConstTensorView logits, Indices targets,
                         TensorView losses);

}  // namespace evenkeel
