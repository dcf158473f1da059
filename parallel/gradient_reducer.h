// Data parallelism's reduction of gradients, in buckets, each begun as soon as its gradients are
// final, so that it travels while the backward pass goes on.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/axis_comm.h"
#include "runtime/tensor/tensor_view.h"

namespace evenkeel {

// One use a step: MarkFinal for every range during the backward pass of the last micro-batch, then
// Finish. All ranks of the axis mark the same ranges in the same order. With one rank nothing is
// done.
class GradientReducer {
 public:
  // gradients [N], dense; reduced in place. Both must outlive the reducer.
  GradientReducer(AxisComm& axis, TensorView gradients, int64_t bucket_elements);

  // The gradients of [begin, end) are final on this rank; `end` is where the range before began (N
  // for the first). Starts the reduction of every bucket that is full, and moves on those under
  // way: MPI makes progress only inside its calls.
  void MarkFinal(int64_t begin, int64_t end);

  // Starts what is left, and waits until all gradients are summed over the ranks.
  void Finish();

 private:
  void Start(int64_t begin);

  AxisComm& axis_;
  TensorView gradients_;
  int64_t bucket_elements_;
  int64_t pending_end_;    // gradients from here on are being reduced
  int64_t pending_begin_;  // gradients from here to pending_end_ are final
  std::vector<Work> works_;
};

}  // namespace evenkeel
