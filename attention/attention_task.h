// The unit of core attention. Every form of softmax attention in this program - a whole document, a
// ring step, a disaggregated shard, a decode step - is a list of tasks handed to one kernel.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "attention/attention_task_type.h"

namespace evenkeel {

// Returns one task per non-empty document of a packed batch. cu_seqlens [B + 1] = {0, ..., T}.
std::vector<AttentionTask> TasksOfDocuments(absl::Span<const int64_t> cu_seqlens);

// Returns the number of (query, key) pairs the task computes.
int64_t NumPairs(const AttentionTask& task);

}  // namespace evenkeel
