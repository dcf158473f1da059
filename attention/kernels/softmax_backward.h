// Backward of block-wise causal attention (Dao et al., FlashAttention, 2022, algorithm 4), column
// by column: a column is a run of keys of one task and one key/value head. Per tile of queries
//   P = exp(scale Q K^T - lse),  dV += P^T dO,  dP = dO V^T,  dS = scale P (dP - delta)
//   dK += dS^T Q,  dQ += dS K;   delta = rowsum(dO * O)
#pragma once

#include <atomic>

#include "attention/attention_task.h"
#include "attention/kernels/softmax_params.h"

namespace evenkeel {

template <typename T>
struct SoftmaxBackwardColumn {
  AttentionTask task;
  int64_t kv_head = 0;
  int64_t key_first = 0;  // within the task
  int64_t key_count = 0;
  // [group, q_len] of this task and key/value head, for Weighting::kSoftmax.
  const T* lse = nullptr;    // times log2 e; +infinity where the query has no key
  const T* delta = nullptr;  // times scale
  // Columns of one task and head run at the same time but add to a tile of dq in ascending order,
  // so that sums do not depend on threads. Each counts the tiles it has done; null for the first.
  const std::atomic<int64_t>* previous_done = nullptr;
  std::atomic<int64_t>* done = nullptr;
};

// Keys of a column of a task with `kv_len` keys.
template <typename T>
int64_t SoftmaxBackwardColumnKeys(const SoftmaxBackwardParams<T>& params, int64_t kv_len);

// Elements of scratch, 64-byte aligned.
template <typename T>
int64_t SoftmaxBackwardScratch(const SoftmaxBackwardParams<T>& params, int64_t column_keys);

// Adds to dq (zero before the first column), dk and dv.
template <Weighting kWeighting, typename T>
void SoftmaxBackward(const SoftmaxBackwardParams<T>& params, const SoftmaxBackwardColumn<T>& column,
                     T* scratch);

}  // namespace evenkeel
