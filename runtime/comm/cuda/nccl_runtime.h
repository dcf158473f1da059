// NCCL's life in this process, and the group of all its ranks, for tensors on the GPU.
//
// What differs from communication between hosts: a call is enqueued on a stream of its communicator
// and the host goes on. It begins when the work that the compute stream holds at the time of the
// call is done. Work::Wait(), the blocking calls, and the destruction of a Work nobody waited for
// do not block the host either: they make the compute stream wait, so what is enqueued there
// afterwards sees the results. Work::Test() says whether the device is done. The first calls of a
// kind on a communicator do block, until the peers have connected.
//
// So nobody waits for peers where a time-out could be returned. A watchdog thread looks after the
// calls instead. On a time-out or an error of NCCL it reports to on_failure and aborts all
// communicators of this rank, which frees the compute stream; from then on every call and Wait()
// returns that error. An aborted call ends like a finished one and leaves garbage behind: ask
// status() after each synchronisation of the compute stream, before believing what it computed.
//
// Calls on one communicator run one after the other, on the device too: unlike over MPI, a
// SendRecvAsync and a collective call must come in an order that suits both sides. Each
// communicator is used by the thread that made the runtime, whose current device must stay.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/base/trace_event.h"
#include "runtime/comm/communicator.h"

namespace evenkeel {

class NcclContext;

struct NcclOptions {
  int device = 0;
  // Where tensors are made and used; must outlive the runtime.
  cudaStream_t compute_stream = nullptr;
  // How long a call may be under way on the device, and peers may take to connect.
  double timeout_s = 300;
  // Called once, on the watchdog's thread, before it aborts: with kDeadlineExceeded, kUnavailable
  // (a peer is gone) or kInternal, naming call, label, size, communicator, step and rank. Must not
  // wait for the GPU. It may end the process. May be null.
  std::function<void(absl::Status)> on_failure;
  // Several ranks use one GPU, for tests: NCCL takes every rank for a host of its own.
  bool shares_device = false;
};

// Movable, not copyable. Communicators split from world() may outlive it. All ranks create and
// destroy it together; destruction waits for calls under way, no longer than the time-out.
class NcclRuntime {
 public:
  // `bootstrap` connects the same ranks on the host and must outlive all communicators of this
  // runtime; call before threads are started (it may set NCCL_HOSTID). Makes options.device the
  // current one. Collective; errors as the bootstrap's, or NCCL's own.
  static absl::StatusOr<NcclRuntime> Create(Communicator& bootstrap, const NcclOptions& options);

  NcclRuntime(NcclRuntime&&) noexcept;
  NcclRuntime& operator=(NcclRuntime&&) = delete;
  ~NcclRuntime();

  // Takes dense device tensors (float32, float64, bf16, int32, int64) and no others: a host tensor
  // is a bug of the caller. Abort() is the bootstrap's.
  Communicator& world() { return *world_; }

  // OK, or the failure after which no call can be made. Thread-safe.
  absl::Status status() const;

  // Returns for how long the compute stream stood still in waits for communication that have ended
  // since the last call: all of them once the compute stream is synchronised. Device time.
  double TakeExposedSeconds();

  // For a timeline: begins to keep the calls of all communicators of this rank (waiting for the
  // compute stream), returns those that have ended since the last time, stops.
  absl::Status StartTrace();
  std::vector<TraceEvent> TakeTrace();
  void StopTrace();

 private:
  NcclRuntime(std::shared_ptr<NcclContext> context, std::unique_ptr<Communicator> world);

  // Shared with the communicators.
  std::shared_ptr<NcclContext> context_;
  std::unique_ptr<Communicator> world_;
};

}  // namespace evenkeel
