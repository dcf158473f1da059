// The thread that notices when a call on the GPU does not end, and ends all of them. Internal to
// runtime/comm.
//
// A collective whose peer never comes spins on the GPU for ever, and the host that synchronises the
// compute stream behind it waits for ever. Only ncclCommAbort from another thread frees both.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "runtime/comm/call_watch.h"
#include "runtime/comm/cuda/nccl_handle.h"
#include "runtime/comm/cuda/peer_copies.h"

namespace evenkeel {

// Thread-safe, but for construction and destruction.
class NcclWatchdog {
 public:
  // `on_failure` may be null.
  NcclWatchdog(int device, double timeout_s, std::function<void(absl::Status)> on_failure);
  // Ends the process with exit code kTimeout if ncclCommAbort hangs, as it has in several versions.
  ~NcclWatchdog();
  NcclWatchdog(const NcclWatchdog&) = delete;
  NcclWatchdog& operator=(const NcclWatchdog&) = delete;

  // A communicator whose errors are watched. `place` is "rank 1 of 4 (host node7, pid 314)".
  struct Watched {
    std::shared_ptr<NcclHandle> handle;
    std::string place;
    int stream;                         // the WatchedCall::stream of its calls
    std::shared_ptr<PeerCopies> peers;  // null if it has none
  };
  void Add(Watched communicator);
  void Remove(const NcclHandle* handle);

  // The call must be on its stream.
  void Add(WatchedCall call);

  // The first error wins: no call can be made any more, on_failure is called and all communicators
  // are aborted, both on the watchdog's thread, soon after this returns.
  void Fail(absl::Status status);

  bool has_failed() const { return has_failed_.load(std::memory_order_acquire); }
  absl::Status status() const;

  void SetStep(int64_t step) { step_.store(step, std::memory_order_relaxed); }
  int64_t step() const { return step_.load(std::memory_order_relaxed); }

 private:
  void Run();
  void CheckCalls();
  void CheckCommunicators();
  // Ends the calls of one communicator; the others go on. On a thread of its own: to free device
  // memory waits for the whole device, and so for calls of the others, which stay watched.
  void Abort(const Watched& watched);
  void AbortAll();
  // Ends what waits for peers' copies. Repeatedly, for peers may set counters back.
  void ReleaseAll();

  const int device_;
  const double timeout_s_;
  const std::function<void(absl::Status)> on_failure_;
  std::atomic<int64_t> step_{0};
  std::atomic<bool> has_failed_{false};

  mutable std::mutex mutex_;  // of what follows, down to communicators_
  std::condition_variable wake_, done_;
  absl::Status status_;
  bool must_stop_ = false;
  bool is_done_ = false;
  std::vector<Watched> communicators_;

  std::mutex calls_mutex_;
  CallWatch calls_;

  std::vector<std::future<void>> aborts_;  // of single communicators

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace evenkeel
