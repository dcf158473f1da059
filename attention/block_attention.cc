#include "attention/block_attention.h"

#include <algorithm>

#include "attention/kernels/cuda/attention_ops.h"
#include "attention/kernels/softmax_schedule.h"

namespace evenkeel {
namespace {

void CheckOperands(absl::Span<const AttentionTask> tasks, const ConstTensorView& q,
                   const ConstTensorView& k, const ConstTensorView& v, const ConstTensorView& out) {
  // Keys may outnumber queries: a decode step asks with few queries for the keys of its block.
  EK_CHECK(q.rank() == 3 && k.rank() == 3 && v.rank() == 3 && q.dim(1) == k.dim(1) &&
           q.dim(2) == k.dim(2) && v.dim(0) == k.dim(0) && v.dim(1) == k.dim(1) &&
           out.shape == Shape({q.dim(0), q.dim(1), v.dim(2)}))
      << q.shape.ToString() << k.shape.ToString() << v.shape.ToString() << out.shape.ToString();
  CheckTasks(tasks, q.dim(0), k.dim(0));
}

}  // namespace

std::vector<AttentionTask> TasksOfBlocks(absl::Span<const int64_t> cu_seqlens, int64_t block) {
  EK_CHECK(block > 0) << block;
  std::vector<AttentionTask> tasks;
  for (const AttentionTask& document : TasksOfDocuments(cu_seqlens)) {
    for (int64_t first = 0; first < document.q_len; first += block) {
      const int64_t begin = document.q_begin + first;
      const int64_t length = std::min(block, document.q_len - first);
      tasks.push_back({begin, length, begin, length});
    }
  }
  return tasks;
}

void ReluBlockAttentionForward(const OpContext& context, const TaskPlan& plan, double scale,
                               ConstTensorView q, ConstTensorView k, ConstTensorView v,
                               TensorView out) {
  CheckOperands(plan.tasks, q, k, v, out);
  EK_TRACE_ON_CUDA(context, ReluBlockAttentionForward, plan, scale, q, k, v, out)
  DispatchFloat(q.dtype, [&]<typename T>() {
    SoftmaxForwardParams<T> params;
    params.q = RowsOf<T>(q);
    params.k = RowsOf<T>(k);
    params.v = RowsOf<T>(v);
    params.out = MutableRowsOf<T>(out);
    params.num_kv_heads = q.dim(1);
    params.head_size = q.dim(2);
    params.value_size = v.dim(2);
    params.scale = scale;
    RunSoftmaxForward<Weighting::kRelu, T>(context, plan.tasks, params);
  });
}

void ReluBlockAttentionBackward(const OpContext& context, const TaskPlan& plan, double scale,
                                ConstTensorView q, ConstTensorView k, ConstTensorView v,
                                ConstTensorView dout, TensorView dq, TensorView dk, TensorView dv) {
  CheckOperands(plan.tasks, q, k, v, dout);
  EK_CHECK(dq.shape == q.shape && dk.shape == k.shape && dv.shape == v.shape)
      << "gradients " << dq.shape.ToString() << dk.shape.ToString() << dv.shape.ToString();
  EK_TRACE_ON_CUDA(context, ReluBlockAttentionBackward, plan, scale, q, k, v, dout, dq, dk, dv)
  DispatchFloat(q.dtype, [&]<typename T>() {
    ClearKeyRows<T>(context, plan.tasks, dk);
    ClearKeyRows<T>(context, plan.tasks, dv);
    SoftmaxBackwardParams<T> params;
    params.q = RowsOf<T>(q);
    params.k = RowsOf<T>(k);
    params.v = RowsOf<T>(v);
    params.dout = RowsOf<T>(dout);
    params.dq = MutableRowsOf<T>(dq);
    params.dk = MutableRowsOf<T>(dk);
    params.dv = MutableRowsOf<T>(dv);
    params.num_kv_heads = q.dim(1);
    params.head_size = q.dim(2);
    params.value_size = v.dim(2);
    params.scale = scale;
    RunSoftmaxBackward<Weighting::kRelu, T>(context, plan.tasks, params);
  });
}

}  // namespace evenkeel
