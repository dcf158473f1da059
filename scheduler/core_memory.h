// Workspace of core attention, alone and over context-parallel ranks. Pure.
#pragma once

#include <cstdint>

#include "scheduler/compute_shape.h"
#include "scheduler/model_shape.h"
#include "scheduler/rank_layout.h"

namespace evenkeel {

// Bytes at the peak, besides inputs, outputs and what is saved.
int64_t CoreForwardBytes(const LayerShape& layer, const RankLayout& layout,
                         const MicroBatchTokens& tokens, const ComputeShape& compute);
int64_t CoreBackwardBytes(const LayerShape& layer, const RankLayout& layout,
                          const MicroBatchTokens& tokens, const ComputeShape& compute);

}  // namespace evenkeel
