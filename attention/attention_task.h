// The unit of core attention. Every form of softmax attention in this program - a whole document, a
// ring step, a disaggregated shard, a decode step - is a list of tasks handed to one kernel.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace evenkeel {

// Rows of packed Q and of packed K, V. Causal, aligned at the end: the last query sees all kv_len
// keys, the one before it one fewer, and so on. A query that is left without a key (q_len > kv_len)
// gets out = 0 and lse = -infinity.
struct AttentionTask {
  int64_t q_begin = 0;
  int64_t q_len = 0;
  int64_t kv_begin = 0;
  int64_t kv_len = 0;
};

// Returns one task per non-empty document of a packed batch. cu_seqlens [B + 1] = {0, ..., T}.
std::vector<AttentionTask> TasksOfDocuments(absl::Span<const int64_t> cu_seqlens);

// Returns the number of (query, key) pairs the task computes.
int64_t NumPairs(const AttentionTask& task);

}  // namespace evenkeel
