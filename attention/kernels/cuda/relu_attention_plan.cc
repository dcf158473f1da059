#include "attention/kernels/cuda/relu_attention_plan.h"

#include <algorithm>

namespace evenkeel {

ReluAttentionPlan PlanReluAttention(const AttentionTask* tasks, int64_t num_tasks) {
  ReluAttentionPlan plan;
  plan.tasks.assign(tasks, tasks + num_tasks);
  std::stable_sort(
      plan.tasks.begin(), plan.tasks.end(),
      [](const AttentionTask& a, const AttentionTask& b) { return a.kv_begin < b.kv_begin; });
  for (int64_t i = 0; i < num_tasks; ++i) {
    const AttentionTask& task = plan.tasks[static_cast<size_t>(i)];
    const int64_t end = task.kv_begin + task.kv_len;
    if (!plan.groups.empty()) {
      ReluTaskGroup& last = plan.groups.back();
      if (task.kv_begin < last.kv_begin + last.kv_len) {
        ++last.num_tasks;
        last.kv_len = std::max(last.kv_len, end - last.kv_begin);
        continue;
      }
    }
    plan.groups.push_back({i, 1, task.kv_begin, task.kv_len});
  }
  return plan;
}

}  // namespace evenkeel
