// When a call began and ended on the GPU. Internal to runtime/comm.
#pragma once

#include "runtime/comm/cuda/cuda_event_pool.h"

namespace evenkeel {

// Marks on the communicator's stream. Shared by the Work, the watchdog and the timeline, any of
// which may be done with the call first.
struct NcclCallEvents {
  CudaEvent start, end;
};

}  // namespace evenkeel
