// How much memory a rank needs for a training step, by purpose, before anything is started. It
// follows what the runtime allocates, item by item; a test holds the two together. On the CPU only
// the scratch of the attention kernels is left out: a few hundred KiB a thread, whatever the
// length.
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

// How a device computes, as far as memory goes.
struct ComputeShape {
  int64_t element_bytes = 4;  // of activations
  int64_t wide_bytes = 4;     // of weights, gradients, optimizer state and statistics
  bool has_copy = false;      // a copy of the weights in the dtype of the activations
  int64_t token_chunk = 512;  // rows that the token-wise pieces work on at a time
  int64_t logits_rows = 512;  // rows of logits that exist at a time
  bool is_gpu = false;
};

// `tokens` of one micro-batch; optimizer state is two values a parameter.
MemoryPlan PlanTrainingMemory(const ModelShape& shape, int64_t tokens, const ComputeShape& compute,
                              RecomputePlan recompute);

}  // namespace evenkeel
