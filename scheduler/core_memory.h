// Workspace of core attention, alone and over context-parallel ranks. Pure.
#pragma once

#include <cstdint>

#include "scheduler/compute_shape.h"
#include "scheduler/model_shape.h"
#include "scheduler/rank_layout.h"

namespace evenkeel {

// The backward kernels' own, for queries of this rank's heads: on the CPU two statistics each, on a
// GPU dq in float32 besides.
int64_t CoreBackwardScratch(const LayerShape& layer, int64_t queries, const ComputeShape& compute);

// Bytes at the peak, besides inputs, outputs and what is saved.
int64_t CoreForwardBytes(const LayerShape& layer, const RankLayout& layout,
                         const MicroBatchTokens& tokens, const ComputeShape& compute);
int64_t CoreBackwardBytes(const LayerShape& layer, const RankLayout& layout,
                          const MicroBatchTokens& tokens, const ComputeShape& compute);

}  // namespace evenkeel
