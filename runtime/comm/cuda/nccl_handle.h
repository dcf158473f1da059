// One NCCL communicator and the stream its calls run on. Internal to runtime/comm.
//
// All communicators are blocking (ncclConfig_t::blocking = 1, NCCL's default): a call puts its
// kernels on the stream itself, within microseconds. A non-blocking one starts a thread for it each
// time, 70 to 110 microseconds a call. The price is that the first call of a kind sits inside NCCL
// until every peer has come to set up connections, and so may any call whose peer is gone while
// NCCL's queue is full. So a thread notes what it is about before it goes in, the watchdog looks
// for how long it has been there (FindOverdue), and ncclCommAbort from the watchdog's thread makes
// it return. That is the only moment at which two threads are in one communicator.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/comm/call_watch.h"

namespace evenkeel {

// ncclInProgress is OK. A peer that is gone is kUnavailable, all else kInternal.
absl::Status ToStatus(ncclResult_t result, const std::string& what);

// How long to wait for peers: until `deadline_ns` of MonotonicNanoseconds(), or until
// `is_cancelled`.
struct NcclPatience {
  int64_t deadline_ns;
  std::function<bool()> is_cancelled;
};

// Thread-safe, but for RunGroup and Close, which belong to one thread.
class NcclHandle {
 public:
  // Makes a communicator of `size` ranks, which all must call this with the same `id`, each with
  // its current device. Fails with kCancelled, kDeadlineExceeded, or NCCL's error. A peer that
  // does not come leaves a thread of NCCL's behind, which ends with the process.
  static absl::StatusOr<std::shared_ptr<NcclHandle>> Connect(const ncclUniqueId& id, int rank,
                                                             int size, int device,
                                                             const std::string& name,
                                                             const NcclPatience& patience);
  ~NcclHandle();
  NcclHandle(const NcclHandle&) = delete;
  NcclHandle& operator=(const NcclHandle&) = delete;

  cudaStream_t stream() const { return stream_; }
  const std::string& name() const { return name_; }

  // Puts the kernels of what `calls` calls on the stream, as one group: at once, but for the first
  // calls of a kind, which wait for the peers to connect. Fails with kCancelled, or the error of a
  // call, named. `call` is what the watchdog says of it.
  using GroupCalls = std::function<absl::Status(ncclComm_t comm, cudaStream_t stream)>;
  absl::Status RunGroup(const WatchedCall& call, const GroupCalls& calls);

  // Returns what to say if a thread has been inside NCCL for longer than `timeout_s`.
  std::optional<std::string> FindOverdue(int64_t now_ns, double timeout_s) const;

  // Communicator::SetInterrupt. The watchdog aborts an interrupted communicator.
  void SetInterrupt(std::function<bool()> is_interrupted);
  bool may_be_interrupted() const;
  bool is_interrupted() const;
  // As if the interrupt had come.
  void Interrupt() { was_interrupted_ = true; }

  // Returns what went wrong on NCCL's own threads since; OK while a call is inside NCCL.
  absl::Status AsyncError();

  // Frees the communicator, whose calls must have ended. All its ranks must call it.
  absl::Status Close(const WatchedCall& call);

  // Hands over the communicator, for ncclCommAbort. Nothing can be called afterwards. A call that
  // is inside NCCL gets a second to leave; after that only the abort lets it.
  ncclComm_t TakeForAbort();

 private:
  explicit NcclHandle(std::string name) : name_(std::move(name)) {}

  // While it lives, this thread is inside NCCL.
  class InsideScope;

  const std::string name_;  // NCCL keeps a pointer to it
  cudaStream_t stream_ = nullptr;

  std::timed_mutex nccl_mutex_;            // held inside NCCL
  std::atomic<ncclComm_t> comm_{nullptr};  // null once closed or taken

  mutable std::mutex mutex_;  // of what follows, for a moment each time
  std::function<bool()> interrupt_;
  const WatchedCall* inside_ = nullptr;
  int64_t inside_since_ns_ = 0;

  std::atomic<bool> was_interrupted_{false};
};

}  // namespace evenkeel
