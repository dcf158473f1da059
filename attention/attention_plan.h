// What a list of tasks, or the documents of a batch, becomes for the device it runs on: made once a
// batch, used by every layer, forward and backward. On the CPU there is nothing to prepare.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "attention/attention_task.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

struct CudaTaskPlan;      // attention/kernels/cuda/attention_ops.cc
struct CudaSequencePlan;  // likewise

// Borrows the tasks. Converts from a list of tasks: attention on a GPU then plans for itself.
struct TaskPlan {
  absl::Span<const AttentionTask> tasks;
  std::shared_ptr<const CudaTaskPlan> cuda;

  TaskPlan() = default;
  // NOLINTNEXTLINE(google-explicit-constructor)
  TaskPlan(absl::Span<const AttentionTask> list) : tasks(list) {}
  // NOLINTNEXTLINE(google-explicit-constructor)
  TaskPlan(const std::vector<AttentionTask>& list) : tasks(list) {}
};

// The same for linear attention: cu_seqlens [B + 1] = {0, ..., T}.
struct SequencePlan {
  absl::Span<const int64_t> cu_seqlens;
  std::shared_ptr<const CudaSequencePlan> cuda;

  SequencePlan() = default;
  // NOLINTNEXTLINE(google-explicit-constructor)
  SequencePlan(absl::Span<const int64_t> offsets) : cu_seqlens(offsets) {}
  // NOLINTNEXTLINE(google-explicit-constructor)
  SequencePlan(const std::vector<int64_t>& offsets) : cu_seqlens(offsets) {}
};

// What a plan of tasks needs to know of the heads. Results do not depend on the group, only their
// speed does.
struct TaskHeads {
  int64_t size = 0;   // the larger of keys' and values'
  int64_t group = 1;  // query heads that share a key/value head
};

// What is on the device lives in the context's arena. `backward`: the backward pass is wanted too.
// `relu`: so is ReLU attention (block_attention.h), which reads a plan of its own.
TaskPlan PlanTasks(const OpContext& context, absl::Span<const AttentionTask> tasks,
                   const TaskHeads& heads, bool backward, bool relu = false);
SequencePlan PlanSequences(const OpContext& context, absl::Span<const int64_t> cu_seqlens,
                           int64_t num_heads, int64_t value_size);

}  // namespace evenkeel
