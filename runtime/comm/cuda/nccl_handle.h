// One NCCL communicator and the stream its calls run on. Internal to runtime/comm.
//
// All communicators are non-blocking (ncclConfig_t::blocking = 0). With blocking ones the first
// call of a kind sits inside NCCL until every peer has come to set up connections, and a host
// thread that sits there can neither time out nor let another thread abort: NCCL forbids two
// threads in one communicator. A non-blocking call does such work on a thread of NCCL's own and
// returns at once. The price is that thread, some tens of microseconds a call, and that the kernels
// are on the stream only when NCCL says so (AwaitReady): events recorded before would be too early.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace evenkeel {

// ncclInProgress is OK. A peer that is gone is kUnavailable, all else kInternal.
absl::Status ToStatus(ncclResult_t result, const std::string& what);

// How long to wait for NCCL's own threads: until `deadline_ns` of MonotonicNanoseconds(), or until
// `is_cancelled`.
struct NcclPatience {
  int64_t deadline_ns;
  std::function<bool()> is_cancelled;
};

// Thread-safe: NCCL is called under a mutex, briefly each time.
class NcclHandle {
 public:
  // Makes a communicator of `size` ranks, which all must call this with the same `id`. Fails with
  // kDeadlineExceeded, or with NCCL's error; then nothing is left behind.
  static absl::StatusOr<std::shared_ptr<NcclHandle>> Connect(const ncclUniqueId& id, int rank,
                                                             int size, const std::string& name,
                                                             const NcclPatience& patience);
  ~NcclHandle();
  NcclHandle(const NcclHandle&) = delete;
  NcclHandle& operator=(const NcclHandle&) = delete;

  cudaStream_t stream() const { return stream_; }
  const std::string& name() const { return name_; }

  // Enqueues what `calls` calls as one group, and waits until its kernels are on the stream: at
  // once, but for the first calls of a kind, which wait for the peers to connect. Fails with
  // kCancelled, kDeadlineExceeded, or the error of a call, named.
  using GroupCalls = std::function<absl::Status(ncclComm_t comm, cudaStream_t stream)>;
  absl::Status RunGroup(const GroupCalls& calls, const NcclPatience& patience);

  // Communicator::SetInterrupt. The watchdog aborts an interrupted communicator.
  void SetInterrupt(std::function<bool()> is_interrupted);
  bool may_be_interrupted() const;
  bool is_interrupted() const;
  // As if the interrupt had come.
  void Interrupt() { was_interrupted_ = true; }

  // Returns what went wrong on NCCL's own threads since.
  absl::Status AsyncError();

  // Frees the communicator, whose calls must have ended. All its ranks must call it.
  absl::Status Close(const NcclPatience& patience);

  // Hands over the communicator, for ncclCommAbort. Nothing can be called afterwards.
  ncclComm_t TakeForAbort();

 private:
  explicit NcclHandle(std::string name) : name_(std::move(name)) {}

  // Waits until NCCL has done what the last call began.
  absl::Status AwaitReady(const std::string& what, const NcclPatience& patience);

  const std::string name_;  // NCCL keeps a pointer to it
  cudaStream_t stream_ = nullptr;
  mutable std::mutex mutex_;
  std::function<bool()> interrupt_;
  std::atomic<bool> was_interrupted_{false};
  ncclComm_t comm_ = nullptr;  // null once closed or taken
};

}  // namespace evenkeel
