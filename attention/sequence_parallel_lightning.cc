#include "attention/sequence_parallel_lightning.h"

#include "attention/lightning_attention.h"
#include "attention/lightning_state.h"
#include "attention/state_travel.h"

namespace evenkeel {
namespace {

// States of `count` pieces, [count, H, D, E].
TensorView AllocateStates(const OpContext& context, int64_t count, const ConstTensorView& q,
                          const ConstTensorView& v) {
  return context.arena.Allocate(context.wide_dtype(), {count, q.dim(1), q.dim(2), v.dim(2)},
                                MemoryPurpose::kWorkspace);
}

template <typename View>
View TokensOf(const View& x, const PieceRun& run) {
  return x.Rows(run.token_begin, run.token_end);
}

// The run's rows of states of pieces with one before (or after); empty where it has none.
template <typename View>
View StatesOf(const View& states, const PieceRun& run, bool has, int64_t first) {
  return has ? states.Rows(first, first + run.num_pieces()) : View();
}
template <typename View>
View Before(const View& states, const PieceRun& run) {
  return StatesOf(states, run, run.has_before, run.first_before);
}
template <typename View>
View After(const View& states, const PieceRun& run) {
  return StatesOf(states, run, run.has_after, run.first_after);
}

}  // namespace

void SequenceParallelLightningForward(const OpContext& context, const ContextPlan& plan,
                                      absl::Span<const double> slopes, ConstTensorView q,
                                      ConstTensorView k, ConstTensorView v, TensorView out,
                                      TensorView states) {
  const ArenaScope scope(context.arena);
  const TensorView added = AllocateStates(context, plan.num_after(), q, v);
  for (const PieceRun& run : plan.runs) {
    if (!run.has_after) continue;
    LightningStateForward(context, run.plan, slopes, TokensOf(k, run), TokensOf(v, run),
                          After(added, run));
  }
  StateTravel travel(context, plan, slopes, StateDirection::kForward, added);
  const auto compute = [&](bool has_before) {
    for (const PieceRun& run : plan.runs) {
      if (run.has_before != has_before) continue;
      LightningAttentionForward(context, run.plan, slopes, TokensOf(q, run), TokensOf(k, run),
                                TokensOf(v, run), Before(ConstTensorView(states), run),
                                TokensOf(out, run), TensorView());
    }
  };
  compute(false);
  travel.Finish(states);
  compute(true);
}

void SequenceParallelLightningBackward(const OpContext& context, const ContextPlan& plan,
                                       absl::Span<const double> slopes, ConstTensorView q,
                                       ConstTensorView k, ConstTensorView v, ConstTensorView states,
                                       ConstTensorView dout, TensorView dq, TensorView dk,
                                       TensorView dv) {
  const ArenaScope scope(context.arena);
  const TensorView added = AllocateStates(context, plan.num_before(), q, v);
  const TensorView after = AllocateStates(context, plan.num_after(), q, v);
  for (const PieceRun& run : plan.runs) {
    if (!run.has_before) continue;
    LightningStateBackward(context, run.plan, slopes, TokensOf(q, run), TokensOf(dout, run),
                           Before(added, run));
  }
  StateTravel travel(context, plan, slopes, StateDirection::kBackward, added);
  for (const PieceRun& run : plan.runs) {
    LightningAttentionBackwardQuery(context, run.plan, slopes, TokensOf(k, run), TokensOf(v, run),
                                    Before(states, run), TokensOf(dout, run), TokensOf(dq, run));
  }
  travel.Finish(after);
  for (const PieceRun& run : plan.runs) {
    LightningAttentionBackwardKeyValue(context, run.plan, slopes, TokensOf(q, run),
                                       TokensOf(k, run), TokensOf(v, run), TokensOf(dout, run),
                                       After(ConstTensorView(after), run), TokensOf(dk, run),
                                       TokensOf(dv, run), TensorView());
  }
}

}  // namespace evenkeel
