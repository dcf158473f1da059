// The plan of softmax attention spelled out: every tile is made, then sorted, one comparison or one
// step of a merge after the other. Slow; what PlanSoftmaxAttention and the device make of its
// descriptors must be the same, tile by tile and in the same order.
#pragma once

#include <vector>

#include "attention/kernels/cuda/softmax_attention_plan.h"

namespace evenkeel {

struct ReferencePlan {
  std::vector<QueryTile> forward_tiles;
  std::vector<QueryTile> query_tiles;
  std::vector<KeyTile> key_tiles;
  std::vector<PlannedTask> tasks;
};

ReferencePlan PlanTileByTile(const std::vector<AttentionTask>& tasks,
                             const SoftmaxAttentionTiling& tiling, int group);

}  // namespace evenkeel
