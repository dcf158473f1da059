#include "attention/softmax_attention.h"

#include "attention/kernels/cuda/attention_ops.h"
#include "attention/kernels/softmax_schedule.h"

namespace evenkeel {
namespace {

bool SameShape(const ConstTensorView& a, const ConstTensorView& b) {
  return a.shape == b.shape && a.dtype == b.dtype;
}

// What dk and dv are made of: what is added to is kept in the wide dtype.
bool HoldsKeyGradients(const ConstTensorView& gradient, const ConstTensorView& of,
                       KeyGradients mode) {
  return gradient.shape == of.shape &&
         gradient.dtype == (mode == KeyGradients::kWrite ? of.dtype : WideDType(of.dtype));
}

void CheckOperands(absl::Span<const AttentionTask> tasks, const ConstTensorView& q,
                   const ConstTensorView& k, const ConstTensorView& v, const ConstTensorView& out,
                   const ConstTensorView& lse) {
  EK_CHECK(q.rank() == 3 && k.rank() == 3 && v.rank() == 3 && out.rank() == 3 && lse.rank() == 2)
      << "attention takes [rows, heads, size]";
  EK_CHECK(k.dim(1) > 0 && q.dim(1) % k.dim(1) == 0 && q.dim(2) == k.dim(2))
      << q.shape.ToString() << " queries of " << k.shape.ToString() << " keys";
  EK_CHECK(v.dim(0) == k.dim(0) && v.dim(1) == k.dim(1))
      << v.shape.ToString() << " values of " << k.shape.ToString() << " keys";
  EK_CHECK(out.shape == (Shape{q.dim(0), q.dim(1), v.dim(2)})) << out.shape.ToString();
  EK_CHECK(lse.shape == (Shape{q.dim(0), q.dim(1)})) << lse.shape.ToString();
  CheckTasks(tasks, q.dim(0), k.dim(0));
}

}  // namespace

void SoftmaxAttentionForward(const OpContext& context, const TaskPlan& plan, double scale,
                             ConstTensorView q, ConstTensorView k, ConstTensorView v,
                             TensorView out, TensorView lse) {
  CheckOperands(plan.tasks, q, k, v, out, lse);
  EK_TRACE_ON_CUDA(context, SoftmaxAttentionForward, plan, scale, q, k, v, out, lse)
  DispatchFloat(q.dtype, [&]<typename T>() {
    SoftmaxForwardParams<T> params;
    params.q = RowsOf<T>(q);
    params.k = RowsOf<T>(k);
    params.v = RowsOf<T>(v);
    params.out = MutableRowsOf<T>(out);
    params.lse = MutableRowsOf<T>(lse);
    params.num_kv_heads = k.dim(1);
    params.group = q.dim(1) / k.dim(1);
    params.head_size = q.dim(2);
    params.value_size = v.dim(2);
    params.scale = scale;
    RunSoftmaxForward<Weighting::kSoftmax, T>(context, plan.tasks, params);
  });
}

void SoftmaxAttentionBackward(const OpContext& context, const TaskPlan& plan, double scale,
                              ConstTensorView q, ConstTensorView k, ConstTensorView v,
                              ConstTensorView out, ConstTensorView lse, ConstTensorView dout,
                              TensorView dq, TensorView dk, TensorView dv, KeyGradients mode) {
  CheckOperands(plan.tasks, q, k, v, out, lse);
  EK_CHECK(SameShape(dout, out) && SameShape(dq, q) && HoldsKeyGradients(dk, k, mode) &&
           HoldsKeyGradients(dv, v, mode))
      << "gradients " << dout.shape.ToString() << dq.shape.ToString() << dk.shape.ToString()
      << dv.shape.ToString();
  EK_TRACE_ON_CUDA(context, SoftmaxAttentionBackward, plan, scale, q, k, v, out, lse, dout, dq, dk,
                   dv, mode)
  DispatchFloat(q.dtype, [&]<typename T>() {
    if (mode != KeyGradients::kAdd) {
      ClearKeyRows<T>(context, plan.tasks, dk);
      ClearKeyRows<T>(context, plan.tasks, dv);
    }
    SoftmaxBackwardParams<T> params;
    params.q = RowsOf<T>(q);
    params.k = RowsOf<T>(k);
    params.v = RowsOf<T>(v);
    params.dout = RowsOf<T>(dout);
    params.dq = MutableRowsOf<T>(dq);
    params.dk = MutableRowsOf<T>(dk);
    params.dv = MutableRowsOf<T>(dv);
    params.out = RowsOf<T>(out);
    params.lse = RowsOf<T>(lse);
    params.num_kv_heads = k.dim(1);
    params.group = q.dim(1) / k.dim(1);
    params.head_size = q.dim(2);
    params.value_size = v.dim(2);
    params.scale = scale;
    RunSoftmaxBackward<Weighting::kSoftmax, T>(context, plan.tasks, params);
  });
}

}  // namespace evenkeel
