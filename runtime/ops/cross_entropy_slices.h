// Cross-entropy where the vocabulary is cut into slices over ranks: each has the logits of its
// slice, the ranks exchange three numbers a token, and each makes the gradient of its own logits.
//   z_t = the slices' logits in a row;   lse_t = max_t + log(sum over slices of sum exp(z - max_t))
//   loss_t = lse_t - z_t[target_t];      dz_t = scale (softmax(z_t) - onehot(target_t))
// cross_entropy.h has the same for a whole vocabulary; where one rank has it all, both agree.
#pragma once

#include <cstdint>

#include "runtime/base/token_target.h"
#include "runtime/ops/mirrored_array.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// logits [T, Vr] of ids [vocab_begin, vocab_begin + Vr), rows may be strided, Vr may be 0; targets
// [T] are ids of the whole vocabulary or kIgnoredTarget. Writes, for each token,
//   statistics [T, 3] = {max z, sum exp(z - max z), z[target] or 0 where another slice has it}
// over this slice: {-inf, 0, 0} of an empty one. Dense; float64 on the CPU whatever the dtype,
// float32 on a GPU.
void CrossEntropySliceStatistics(const OpContext& context, ConstTensorView logits, Indices targets,
                                 int64_t vocab_begin, TensorView statistics);

// all [P, T, 3]: the statistics of all P slices, in order of the vocabulary; dense. They are
// combined in that order, so every rank has the same losses to the bit. Replaces this slice's
// logits [T, Vr] by their gradient; with empty logits there are losses alone. losses [T] as in
// cross_entropy.h. A NaN in any slice gives a NaN loss and gradient on every rank.
void CrossEntropySliceGradient(const OpContext& context, ConstTensorView all, Indices targets,
                               int64_t vocab_begin, double scale, TensorView logits,
                               TensorView losses);

}  // namespace evenkeel
