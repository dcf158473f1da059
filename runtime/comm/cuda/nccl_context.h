// What all NCCL communicators of one process share. Internal to runtime/comm.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/comm/cuda/call_trace.h"
#include "runtime/comm/cuda/cuda_event_pool.h"
#include "runtime/comm/cuda/nccl_handle.h"
#include "runtime/comm/cuda/nccl_runtime.h"
#include "runtime/comm/cuda/nccl_watchdog.h"
#include "runtime/comm/cuda/stream_wait_timer.h"

namespace evenkeel {

class NcclContext {
 public:
  explicit NcclContext(const NcclOptions& options);
  NcclContext(const NcclContext&) = delete;
  NcclContext& operator=(const NcclContext&) = delete;

  const NcclOptions& options() const { return options_; }
  CudaEventPool& events() { return events_; }
  CallTrace& trace() { return trace_; }
  StreamWaitTimer& compute_waits() { return compute_waits_; }
  NcclWatchdog& watchdog() { return watchdog_; }

  // "rank 1 of 4 (host node7, pid 314)".
  std::string Place(int rank, int size) const;
  // The time-out of the options from now on, cut short by a failure.
  NcclPatience Patience();
  // A number for the stream of a new communicator.
  int NewStreamNumber() { return next_stream_++; }

 private:
  const NcclOptions options_;
  std::string host_;
  int next_stream_ = 0;
  CudaEventPool events_{cudaEventDefault};
  CallTrace trace_;
  StreamWaitTimer compute_waits_;
  NcclWatchdog watchdog_;  // last: its list of calls holds events
};

}  // namespace evenkeel
