// AttentionTask alone, for code that may not include Abseil (CUDA kernels). See attention_task.h.
#pragma once

#include <cstdint>

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

}  // namespace evenkeel
