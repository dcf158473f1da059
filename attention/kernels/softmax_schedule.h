// Cuts a list of tasks into pieces of work and runs them on the pool. Results do not depend on the
// cut, on the number of threads, or on which thread computes what.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "attention/attention_task.h"
#include "attention/kernels/softmax_params.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Aborts if a task does not lie within `q_rows` rows of queries and `kv_rows` of keys.
void CheckTasks(absl::Span<const AttentionTask> tasks, int64_t q_rows, int64_t kv_rows);

template <Weighting kWeighting, typename T>
void RunSoftmaxForward(const OpContext& context, absl::Span<const AttentionTask> tasks,
                       const SoftmaxForwardParams<T>& params);

// Sets dq at the tasks' query rows and adds to dk and dv.
template <Weighting kWeighting, typename T>
void RunSoftmaxBackward(const OpContext& context, absl::Span<const AttentionTask> tasks,
                        const SoftmaxBackwardParams<T>& params);

// Sets view [T_kv, G, size] to zero at the tasks' key rows.
template <typename T>
void ClearKeyRows(const OpContext& context, absl::Span<const AttentionTask> tasks,
                  const TensorView& view) {
  for (const AttentionTask& task : tasks) {
    context.pool.ParallelFor(task.kv_len, 64, [&](int64_t begin, int64_t end) {
      const HeadRows<T> rows = MutableRowsOf<T>(view);
      for (int64_t row = task.kv_begin + begin; row < task.kv_begin + end; ++row) {
        for (int64_t h = 0; h < view.dim(1); ++h) std::fill_n(rows.at(row, h), view.dim(2), T{0});
      }
    });
  }
}

// Returns for each task how many waves of tasks must finish before it, so that tasks which share
// key rows run one after the other, in the order of the list.
std::vector<int64_t> WavesOfTasks(absl::Span<const AttentionTask> tasks);

}  // namespace evenkeel
