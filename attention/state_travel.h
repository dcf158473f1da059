// How states, or their gradients, get from the pieces of a sequence that add to them to those that
// need them. Private to attention/.
#pragma once

#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "attention/context_plan.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

enum class StateDirection {
  kForward,   // states, to the pieces after
  kBackward,  // gradients of states, to the pieces before
};

// One exchange. Everything lives in the context's arena.
class StateTravel {
 public:
  // mine [N, H, D, E], dense: what this rank's pieces add; forward the pieces with one after,
  // backward those with one before. Begins what can be begun.
  StateTravel(const OpContext& context, const ContextPlan& plan, absl::Span<const double> slopes,
              StateDirection direction, TensorView mine);

  // Fills arrived [M, H, D, E]: forward the states before this rank's pieces with one before,
  // backward the gradients after those with one after.
  void Finish(TensorView arrived);

 private:
  void Scan(TensorView arrived);

  const OpContext& context_;
  const ContextPlan& plan_;
  absl::Span<const double> slopes_;
  StateDirection direction_;
  TensorView mine_;  // [N, H, D, E]
  TensorView all_;   // of all ranks (kGather)
  Work gather_;
};

}  // namespace evenkeel
