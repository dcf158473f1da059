// AttentionTask alone, for code that may not include Abseil (CUDA kernels). See attention_task.h.
#pragma once

#include <algorithm>
#include <cstdint>

namespace evenkeel {

// Rows of packed Q and of packed K, V. Causal: the last query is q_ahead positions past the last
// key, so query i sees the first clamp(kv_len + q_ahead - (q_len - 1 - i), 0, kv_len) keys.
//   q_ahead = 0             aligned at the end: the last query sees all keys, the one before it one
//                           fewer, and so on
//   q_ahead >= q_len - 1    a rectangle: every query sees every key (keys of earlier positions, as
//                           in ring attention below the diagonal)
// A query that is left without a key gets out = 0 and lse = -infinity.
struct AttentionTask {
  int64_t q_begin = 0;
  int64_t q_len = 0;
  int64_t kv_begin = 0;
  int64_t kv_len = 0;
  int64_t q_ahead = 0;  // >= 0
};

// Returns o such that query i sees the first clamp(i + 1 + o, 0, kv_len) keys. Beyond a rectangle
// q_ahead changes nothing, so it is cut there: o stays within the lengths, whatever q_ahead is.
inline int64_t DiagonalOffset(const AttentionTask& task) {
  return task.kv_len - task.q_len + std::min(task.q_ahead, task.q_len);
}

}  // namespace evenkeel
