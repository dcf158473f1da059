// A plan of softmax attention with its tiles in host memory, made by the functions that the device
// runs.
#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

#include "attention/kernels/cuda/softmax_attention_plan.h"
#include "attention/kernels/cuda/softmax_plan_tiles.h"

namespace evenkeel {

struct PlanOnHost {
  PlanOnHost(const std::vector<AttentionTask>& tasks, const SoftmaxAttentionTiling& tiling,
             int group, bool backward)
      : plan(PlanSoftmaxAttention(tasks.data(), static_cast<int64_t>(tasks.size()), tiling, group,
                                  backward)),
        // What no thread writes is no tile.
        memory(PlanMemoryBytes(plan), std::byte{0xff}) {
    if (!plan.bytes.empty()) std::memcpy(memory.data(), plan.bytes.data(), plan.bytes.size());
    const SoftmaxPlanPieces pieces = PiecesOf(plan, memory.data());
    for (int64_t i = 0; i < NumPlanTiles(pieces); ++i) MakePlanTile(pieces, i);
    view = ViewOf(plan, memory.data());
  }

  SoftmaxAttentionPlan plan;
  std::vector<std::byte> memory;
  SoftmaxAttentionPlanView view;
};

}  // namespace evenkeel
