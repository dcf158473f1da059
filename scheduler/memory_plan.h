// How much memory a rank needs for a training step, by purpose, before anything is started. It
// follows what the runtime allocates, item by item; a test holds the two together. Only the scratch
// of the attention kernels is left out: a few hundred KiB a thread, whatever the length.
#pragma once

#include <cstdint>

#include "scheduler/model_shape.h"

namespace evenkeel {

enum class RecomputePlan { kNone, kMlp, kLayer };

struct MemoryPlan {
  int64_t weights = 0;  // bytes, all of them
  int64_t gradients = 0;
  int64_t optimizer = 0;
  int64_t activations = 0;  // kept from the forward pass for the backward pass
  int64_t workspace = 0;    // on top of that at the peak, inside a layer or the head
  int64_t total() const { return weights + gradients + optimizer + activations + workspace; }
};

// `tokens` of one micro-batch; `element_bytes` of activations, weights and gradients; optimizer
// state is two values a parameter. `token_chunk` rows are worked on at a time by the token-wise
// pieces.
MemoryPlan PlanTrainingMemory(const ModelShape& shape, int64_t tokens, int64_t element_bytes,
                              RecomputePlan recompute, int64_t token_chunk);

}  // namespace evenkeel
