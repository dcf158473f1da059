// How much memory the buffers of disaggregated attention take, of those that send and of those that
// serve, before any plan is made: the most that plans (scheduler/disaggregation_plan.h) need, as
// far as batches are what docs/disaggregation.md assumes of them. Pure.
#pragma once

#include <cstdint>

#include "scheduler/compute_shape.h"
#include "scheduler/model_shape.h"
#include "scheduler/rank_layout.h"

namespace evenkeel {

// Rows of the buffers of a nano-batch, as attention/server_exchange.h makes them.
struct ServerRows {
  int64_t sent_queries = 0;
  int64_t sent_keys = 0;  // once for each server that they go to
  int64_t held_queries = 0;
  int64_t held_keys = 0;
  int64_t kept_keys = 0;  // of those held, this rank's own
};

// In the backward pass, which needs more than the forward pass (attention/server_pass.h). `layer`
// has softmax attention.
int64_t ServerRowBytes(const LayerShape& layer, const ServerRows& rows,
                       const ComputeShape& compute);

// Whose buffers: those of the rank of the mesh at a layout, or of a dedicated server beside it.
enum class PoolRole { kMesh, kDedicated };

// Both nano-batches' buffers, and the kernel's scratch.
int64_t ServerBufferBytes(const LayerShape& layer, const RankLayout& layout,
                          const MicroBatchTokens& tokens, const ComputeShape& compute,
                          PoolRole role);

}  // namespace evenkeel
