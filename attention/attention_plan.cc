#include "attention/attention_plan.h"

#include "attention/kernels/cuda/attention_ops.h"

namespace evenkeel {

TaskPlan PlanTasks(const OpContext& context, absl::Span<const AttentionTask> tasks,
                   const TaskHeads& heads, bool backward, bool relu) {
  EK_PASS_ON_TO_CUDA(context, PlanTasks(context, tasks, heads, backward, relu))
  return tasks;
}

SequencePlan PlanSequences(const OpContext& context, absl::Span<const int64_t> cu_seqlens,
                           int64_t num_heads, int64_t value_size) {
  EK_PASS_ON_TO_CUDA(context, PlanSequences(context, cu_seqlens, num_heads, value_size))
  return cu_seqlens;
}

}  // namespace evenkeel
