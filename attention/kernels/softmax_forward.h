// Forward of block-wise causal attention for a run of queries of one task and one key/value head.
#pragma once

#include "attention/attention_task.h"
#include "attention/kernels/softmax_params.h"

namespace evenkeel {

// The part of a task that one thread computes at a time: queries [q_first, q_first + q_count) of
// the task and query heads [head_first, head_first + head_count), all reading one key/value head.
// How a task is cut into units does not change its results.
struct SoftmaxForwardUnit {
  AttentionTask task;
  int64_t q_first = 0;  // a multiple of SoftmaxForwardTile
  int64_t q_count = 0;
  int64_t head_first = 0;
  int64_t head_count = 0;
};

// Queries computed together; the granularity of a unit.
template <typename T>
int64_t SoftmaxForwardTile();

// The most tiles a unit may have, over all its heads: what fits a core's cache.
template <typename T>
int64_t SoftmaxForwardMaxTiles(const SoftmaxForwardParams<T>& params);

// Elements of scratch, 64-byte aligned, for a unit of `max_tiles` tiles.
template <typename T>
int64_t SoftmaxForwardScratch(const SoftmaxForwardParams<T>& params, int64_t max_tiles);

template <Weighting kWeighting, typename T>
void SoftmaxForward(const SoftmaxForwardParams<T>& params, const SoftmaxForwardUnit& unit,
                    T* scratch);

}  // namespace evenkeel
