// What the backward pass of ReLU attention is launched over: tasks that share keys in one group, so
// that one block of threads holds every sum over a key and no two blocks write the same row.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/attention_task_type.h"

namespace evenkeel {

// Tasks whose keys overlap, directly or through others, and the rows that these cover.
struct ReluTaskGroup {
  int64_t first_task = 0;
  int64_t num_tasks = 0;
  int64_t kv_begin = 0;
  int64_t kv_len = 0;
};

struct ReluAttentionPlan {
  std::vector<AttentionTask> tasks;  // by their first key; equals in the order given
  std::vector<ReluTaskGroup> groups;
};

ReluAttentionPlan PlanReluAttention(const AttentionTask* tasks, int64_t num_tasks);

}  // namespace evenkeel
