#include "attention/attention_task.h"

#include <algorithm>

#include "runtime/base/check.h"

namespace evenkeel {

std::vector<AttentionTask> TasksOfDocuments(absl::Span<const int64_t> cu_seqlens) {
  std::vector<AttentionTask> tasks;
  for (size_t i = 1; i < cu_seqlens.size(); ++i) {
    const int64_t begin = cu_seqlens[i - 1], length = cu_seqlens[i] - begin;
    EK_CHECK(length >= 0) << "cu_seqlens decreases at " << i;
    if (length > 0) tasks.push_back({begin, length, begin, length});
  }
  return tasks;
}

int64_t NumPairs(const AttentionTask& task) {
  // The last `whole` queries see all keys; before them n queries see kv_len - 1, kv_len - 2, ...
  const int64_t whole = std::min(task.q_len - 1, task.q_ahead) + 1;
  const int64_t n = std::min(task.q_len - whole, task.kv_len);
  return whole * task.kv_len + n * (2 * task.kv_len - n - 1) / 2;
}

}  // namespace evenkeel
