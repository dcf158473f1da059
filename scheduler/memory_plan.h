// How much memory a rank needs for a training step, by purpose, before anything is started. It
// follows what the runtime allocates, item by item; tests hold the two together. What attention
// servers exchange depends on the documents, and is a bound (scheduler/server_memory.h). On the CPU
// only the scratch of the attention kernels is left out: a few hundred KiB a thread, whatever the
// length.
#pragma once

#include <cstdint>

#include "scheduler/compute_shape.h"
#include "scheduler/model_shape.h"
#include "scheduler/rank_layout.h"

namespace evenkeel {

struct MemoryPlan {
  int64_t weights = 0;  // bytes, all of them
  int64_t gradients = 0;
  int64_t optimizer = 0;
  int64_t activations = 0;  // kept from the forward pass for the backward pass
  int64_t workspace = 0;    // on top of that at the peak, inside a layer or the head
  int64_t windows = 0;      // that tensor-parallel ranks copy rows into
  int64_t attention = 0;    // what travels to attention servers and is held by them: a bound
  int64_t total() const {
    return weights + gradients + optimizer + activations + workspace + windows + attention;
  }
};

// Of a rank that holds the part `shape`, with micro-batches of `tokens` each. Optimizer state is
// two values a parameter. Stages of a pipeline keep several micro-batches, each in an arena of its
// own, which once it has grown stays so: activations and workspace are there as often.
MemoryPlan PlanTrainingMemory(const ModelShape& shape, const RankLayout& layout,
                              const MicroBatchTokens& tokens, int64_t micro_batches,
                              const ComputeShape& compute, RecomputePlan recompute);
// Of a dedicated attention server beside the rank at `layout`, which holds `shape`.
MemoryPlan PlanServerMemory(const ModelShape& shape, const RankLayout& layout,
                            const MicroBatchTokens& tokens, const ComputeShape& compute);
// Of one rank with the whole model and one micro-batch of `tokens`.
MemoryPlan PlanTrainingMemory(const ModelShape& shape, int64_t tokens, const ComputeShape& compute,
                              RecomputePlan recompute);

}  // namespace evenkeel
