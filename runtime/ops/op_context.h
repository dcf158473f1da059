// What every op is given: where it runs and what it may use there.
#pragma once

#include "runtime/base/thread_pool.h"
#include "runtime/tensor/arena.h"
#include "runtime/tensor/tensor_view.h"

namespace evenkeel {

// Ops run on the calling thread and the pool's; when an op returns, its result is complete. Scratch
// memory comes from `arena` and is given back before the op returns. An op's result does not depend
// on the number of threads.
struct OpContext {
  ThreadPool& pool;
  Arena& arena;
  DType dtype = DType::kF32;  // of activations, weights and gradients
};

}  // namespace evenkeel
