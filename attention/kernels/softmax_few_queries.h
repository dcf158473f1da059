// Attention of a few queries to many keys, as in decoding: bound by memory bandwidth, so keys and
// values are read once, where they lie, for all query heads that share them.
#pragma once

#include "attention/attention_task.h"
#include "attention/kernels/softmax_params.h"

namespace evenkeel {

// Tasks with at most this many queries are computed here, with the head size in the lanes.
constexpr int64_t kFewQueries = 4;
// Keys of one unit. Units of one task and key/value head are merged in ascending order.
constexpr int64_t kFewQueriesChunk = 2048;

// Elements of a unit's partial result: per query head of the group and query, the output [E] not
// yet divided by the sum, the maximum in units of log2, and the sum.
template <typename T>
int64_t FewQueriesPartial(const SoftmaxForwardParams<T>& params, const AttentionTask& task);

// Elements of scratch, 64-byte aligned.
template <typename T>
int64_t FewQueriesScratch(const SoftmaxForwardParams<T>& params);

// Computes the partial result of keys [chunk * kFewQueriesChunk, ...) of one key/value head.
template <typename T>
void FewQueriesForward(const SoftmaxForwardParams<T>& params, const AttentionTask& task,
                       int64_t kv_head, int64_t chunk, T* scratch, T* partial);

// Merges the partial results of all chunks, adjacent in memory, and writes out and lse.
template <typename T>
void FewQueriesMerge(const SoftmaxForwardParams<T>& params, const AttentionTask& task,
                     int64_t kv_head, int64_t num_chunks, T* partials);

}  // namespace evenkeel
