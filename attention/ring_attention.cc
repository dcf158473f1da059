#include "attention/ring_attention.h"

#include <algorithm>

#include "attention/key_value_rows.h"
#include "attention/merge_state.h"
#include "attention/softmax_attention.h"

namespace evenkeel {
namespace {

TensorView Workspace(const OpContext& context, DType dtype, Shape shape) {
  return context.arena.Allocate(dtype, shape, MemoryPurpose::kWorkspace);
}

// Rows that go round: at step s those of rank (me - s).
class RingRows {
 public:
  RingRows(const OpContext& context, const ContextPlan& plan, DType dtype, int64_t width)
      : plan_(plan) {
    const std::vector<int64_t>& rows = plan.layout.rows();
    const int64_t most = *std::max_element(rows.begin(), rows.end());
    for (TensorView& buffer : buffers_) buffer = Workspace(context, dtype, {most, width});
  }

  TensorView At(int step) const {
    const int ranks = plan_.axis->size();
    const int source = (plan_.axis->rank() - step % ranks + ranks) % ranks;
    return buffers_[step % 2].Rows(0, plan_.layout.rows()[static_cast<size_t>(source)]);
  }
  // Begins to send the rows of `step` on and to receive those of the next step. The rows that were
  // there a step before are overwritten.
  Work PassOn(int step, const char* label) const {
    const int ranks = plan_.axis->size(), me = plan_.axis->rank();
    const SendTo send{(me + 1) % ranks, At(step)};
    const ReceiveFrom receive{(me - 1 + ranks) % ranks, At(step + 1)};
    return plan_.axis->SendRecvAsync({&send, 1}, {&receive, 1}, label);
  }

 private:
  const ContextPlan& plan_;
  TensorView buffers_[2];
};

}  // namespace

void RingAttentionForward(const OpContext& context, const ContextPlan& plan, double scale,
                          ConstTensorView q, ConstTensorView k, ConstTensorView v, TensorView out,
                          TensorView lse) {
  const ArenaScope scope(context.arena);
  const KeyValueShape shape(k, v);
  const int steps = plan.axis->size();
  const RingRows ring(context, plan, context.dtype, shape.width());
  PackKeysAndValues(context, shape, k, v, ring.At(0));
  // Partial results are summed in the wide dtype.
  const TensorView sum = Workspace(context, context.wide_dtype(), out.shape);
  const TensorView part = Workspace(context, context.dtype, out.shape);
  const TensorView part_lse = Workspace(context, context.wide_dtype(), lse.shape);
  SetIdentityState(context, sum, lse);
  for (int step = 0; step < steps; ++step) {
    Work work;
    if (step + 1 < steps) work = ring.PassOn(step, "keys and values around the ring");
    const ConstTensorView rows = ring.At(step);
    for (const TaskPlan& tasks : plan.ring_steps[static_cast<size_t>(step)]) {
      SetIdentityState(context, TensorView(), part_lse);  // queries without a task
      SoftmaxAttentionForward(context, tasks, scale, q, shape.Keys(rows), shape.Values(rows), part,
                              part_lse);
      MergeState(context, part, part_lse, sum, lse);
    }
    plan.axis->Wait(work);
  }
  Copy(context, sum.MergeHeads(), out.MergeHeads());
}

void RingAttentionBackward(const OpContext& context, const ContextPlan& plan, double scale,
                           ConstTensorView q, ConstTensorView k, ConstTensorView v,
                           ConstTensorView out, ConstTensorView lse, ConstTensorView dout,
                           TensorView dq, TensorView dk, TensorView dv) {
  const ArenaScope scope(context.arena);
  const KeyValueShape shape(k, v);
  const int steps = plan.axis->size();
  const RingRows ring(context, plan, context.dtype, shape.width());
  const RingRows gradients(context, plan, context.wide_dtype(), shape.width());
  PackKeysAndValues(context, shape, k, v, ring.At(0));
  SetZero(context, gradients.At(0));
  const TensorView sum = Workspace(context, context.wide_dtype(), dq.shape);
  const TensorView part = Workspace(context, context.dtype, dq.shape);
  SetZero(context, sum);
  for (int step = 0; step < steps; ++step) {
    Work keys;
    if (step + 1 < steps) keys = ring.PassOn(step, "keys and values around the ring");
    const ConstTensorView rows = ring.At(step);
    const TensorView drows = gradients.At(step);
    for (const TaskPlan& tasks : plan.ring_steps[static_cast<size_t>(step)]) {
      SetZero(context, part);
      SoftmaxAttentionBackward(context, tasks, scale, q, shape.Keys(rows), shape.Values(rows), out,
                               lse, dout, part, shape.Keys(drows), shape.Values(drows),
                               KeyGradients::kAdd);
      AddWide(context, part, sum);
    }
    plan.axis->Wait(keys);
    // After the last step they come home.
    Work passed = gradients.PassOn(step, "gradients around the ring");
    plan.axis->Wait(passed);
  }
  Copy(context, sum.MergeHeads(), dq.MergeHeads());
  UnpackKeysAndValues(context, shape, gradients.At(steps), dk, dv);
}

}  // namespace evenkeel
