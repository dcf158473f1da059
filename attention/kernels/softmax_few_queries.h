// Attention of a few queries to many keys, as in decoding: bound by memory bandwidth, so keys and
// values are read once, where they lie, for all query heads.
#pragma once

#include "attention/attention_task.h"
#include "attention/kernels/softmax_params.h"

namespace evenkeel {

// Tasks with at most this many queries are computed here, with the head size in the lanes.
constexpr int64_t kFewQueries = 4;
// Keys of one unit. The units of a task are merged in ascending order.
constexpr int64_t kFewQueriesChunk = 512;

// Elements of a unit's partial result: per query head and query, the output [E] not yet divided by
// the sum, the maximum in units of log2, and the sum.
template <typename T>
int64_t FewQueriesPartial(const SoftmaxForwardParams<T>& params, const AttentionTask& task);

// Elements of scratch, 64-byte aligned.
template <typename T>
int64_t FewQueriesScratch(const SoftmaxForwardParams<T>& params);

// Computes the partial result of keys [chunk * kFewQueriesChunk, ...).
template <typename T>
void FewQueriesForward(const SoftmaxForwardParams<T>& params, const AttentionTask& task,
                       int64_t chunk, T* scratch, T* partial);

// Merges the partial results of all chunks, adjacent in memory, and writes out and lse.
template <typename T>
void FewQueriesMerge(const SoftmaxForwardParams<T>& params, const AttentionTask& task,
                     int64_t num_chunks, const T* partials);

}  // namespace evenkeel
