// What every op is given: where it runs and what it may use there.
#pragma once

#include "runtime/base/thread_pool.h"
#include "runtime/tensor/arena.h"
#include "runtime/tensor/tensor_view.h"

namespace evenkeel {

struct CudaOps;
class StepTrace;

// On the CPU ops run on the calling thread and the pool's, and when one returns, its result is
// complete. On a GPU (`cuda` is not null) they enqueue their work on its compute stream and return:
// results are there for what is enqueued later, and for the host after CudaDevice::Synchronize(),
// which also tells what failed. Scratch memory comes from `arena` and is given back before the op
// returns. An op's result does not depend on the number of threads.
struct OpContext {
  ThreadPool& pool;
  Arena& arena;
  DType dtype = DType::kF32;  // of activations and of the weights that ops multiply with
  CudaOps* cuda = nullptr;
  StepTrace* trace = nullptr;  // where a timeline is wanted (step_trace.h)

  Device device() const { return cuda == nullptr ? Device::kCpu : Device::kCuda; }
  // Of statistics (lse, states, tables of angles) and of gradients of weights: float32 beside bf16.
  DType wide_dtype() const { return WideDType(dtype); }
};

}  // namespace evenkeel
