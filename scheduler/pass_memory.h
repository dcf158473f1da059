// What a micro-batch takes of an arena on its way through a chunk of layers, by going through what
// models/ and attention/ allocate. Pure.
#pragma once

#include <cstdint>

#include "scheduler/compute_shape.h"
#include "scheduler/model_shape.h"
#include "scheduler/rank_layout.h"

namespace evenkeel {

struct PassMemory {
  int64_t kept = 0;  // bytes, from the forward pass until the backward pass
  int64_t peak = 0;  // at any time, `kept` included
  // In the arena for what travels to attention servers, which all passes share: what two layers
  // have open at a time, and buffers (scheduler/server_memory.h).
  int64_t pool = 0;
};

// Of chunk `chunk` of the part `shape`.
PassMemory PassMemoryOf(const ModelShape& shape, int chunk, const RankLayout& layout,
                        const MicroBatchTokens& tokens, const ComputeShape& compute,
                        RecomputePlan recompute);

}  // namespace evenkeel
