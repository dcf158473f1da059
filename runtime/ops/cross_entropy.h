// Cross-entropy over the vocabulary, with the gradient made in the same pass over the logits. The
// caller feeds it a chunk of tokens at a time, so the logits of all tokens never exist at once.
//   loss_t = logsumexp(z_t) - z_t[target_t];   dz_t = scale (softmax(z_t) - onehot(target_t))
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "runtime/base/token_target.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// logits [T, V]; targets [T], each in [0, V) or kIgnoredTarget; losses [T] (float64 whatever the
// dtype). Replaces logits by their gradient. NaN logits give NaN losses.
void CrossEntropyForwardBackward(const OpContext& context, absl::Span<const int32_t> targets,
                                 double scale, TensorView logits, absl::Span<double> losses);

// The losses alone; logits are only read.
void CrossEntropyForward(const OpContext& context, ConstTensorView logits,
                         absl::Span<const int32_t> targets, absl::Span<double> losses);

}  // namespace evenkeel
