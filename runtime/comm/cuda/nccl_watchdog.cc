#include "runtime/comm/cuda/nccl_watchdog.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/log.h"
#include "runtime/comm/status_board.h"
#include "runtime/device/cuda_status.h"

namespace evenkeel {
namespace {

constexpr std::chrono::milliseconds kPeriod(50);
// How long the destructor lets ncclCommAbort take. It frees memory and joins threads: seconds at
// worst.
constexpr std::chrono::seconds kAbortPatience(20);

}  // namespace

NcclWatchdog::NcclWatchdog(int device, double timeout_s,
                           std::function<void(absl::Status)> on_failure)
    : device_(device),
      timeout_s_(timeout_s),
      on_failure_(std::move(on_failure)),
      calls_(timeout_s),
      thread_([this] { Run(); }) {}

NcclWatchdog::~NcclWatchdog() {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    must_stop_ = true;
    wake_.notify_all();
    if (!done_.wait_for(lock, kAbortPatience, [this] { return is_done_; })) {
      LogError("NCCL does not abort its communicators; ending the process");
      std::_Exit(static_cast<int>(ExitCode::kTimeout));
    }
  }
  thread_.join();
}

void NcclWatchdog::Add(Watched communicator) {
  const std::lock_guard<std::mutex> lock(mutex_);
  communicators_.push_back(std::move(communicator));
}

void NcclWatchdog::Remove(const NcclHandle* handle) {
  const std::lock_guard<std::mutex> lock(mutex_);
  communicators_.erase(
      std::remove_if(communicators_.begin(), communicators_.end(),
                     [&](const Watched& watched) { return watched.handle.get() == handle; }),
      communicators_.end());
}

void NcclWatchdog::Add(WatchedCall call) {
  const std::lock_guard<std::mutex> lock(calls_mutex_);
  calls_.Add(std::move(call));
}

void NcclWatchdog::Fail(absl::Status status) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!status_.ok()) return;
  status_ = std::move(status);
  has_failed_.store(true, std::memory_order_release);
  wake_.notify_all();
}

absl::Status NcclWatchdog::status() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return status_;
}

void NcclWatchdog::Run() {
  if (const absl::Status status = ToStatus(cudaSetDevice(device_), "cudaSetDevice"); !status.ok()) {
    Fail(status);
  }
  absl::Status failure;
  for (;;) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait_for(lock, kPeriod, [this] { return must_stop_ || !status_.ok(); });
      failure = status_;
      if (must_stop_ || !failure.ok()) break;
    }
    CheckCalls();
    CheckCommunicators();
  }
  if (!failure.ok()) {
    // First the report, for the abort may hang.
    if (on_failure_ != nullptr) on_failure_(failure);
    ReleaseAll();
    AbortAll();
    std::unique_lock<std::mutex> lock(mutex_);
    while (!must_stop_) {
      lock.unlock();
      ReleaseAll();
      lock.lock();
      wake_.wait_for(lock, kPeriod, [this] { return must_stop_; });
    }
  }
  aborts_.clear();  // waits for them
  const std::lock_guard<std::mutex> lock(mutex_);
  is_done_ = true;
  done_.notify_all();
}

void NcclWatchdog::CheckCalls() {
  std::optional<std::string> overdue;
  {
    const std::lock_guard<std::mutex> lock(calls_mutex_);
    overdue = calls_.FindOverdue(MonotonicNanoseconds());
  }
  if (overdue.has_value()) Fail(absl::DeadlineExceededError(*overdue));
}

void NcclWatchdog::CheckCommunicators() {
  std::vector<Watched> communicators;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    communicators = communicators_;
  }
  for (const Watched& watched : communicators) {
    if (watched.handle->is_interrupted()) {
      Abort(watched);
      continue;
    }
    if (const auto overdue = watched.handle->FindOverdue(MonotonicNanoseconds(), timeout_s_)) {
      Fail(absl::DeadlineExceededError(*overdue));
      continue;
    }
    const absl::Status error = watched.handle->AsyncError();
    if (error.ok()) continue;
    // A peer that is gone shows here too, before anybody says so.
    if (watched.handle->may_be_interrupted()) {
      LogWarning(absl::StrCat(watched.handle->name(), " on ", watched.place, " at step ", step(),
                              ": ", error.message()));
      watched.handle->Interrupt();
      Abort(watched);
      continue;
    }
    std::string text =
        absl::StrCat(watched.handle->name(), " failed on ", watched.place, " at step ", step());
    {
      const std::lock_guard<std::mutex> lock(calls_mutex_);
      if (const WatchedCall* call = calls_.FirstOf(watched.stream); call != nullptr) {
        absl::StrAppend(&text, " in or before ", call->text, ", call number ", call->sequence);
      }
    }
    Fail(absl::Status(error.code(), absl::StrCat(text, ": ", error.message())));
  }
}

void NcclWatchdog::Abort(const Watched& watched) {
  const ncclComm_t comm = watched.handle->TakeForAbort();
  if (comm == nullptr) return;
  // The handle has the stream of its calls, which lasts until they have ended.
  aborts_.push_back(
      std::async(std::launch::async, [comm, handle = watched.handle, device = device_] {
        absl::Status status = ToStatus(cudaSetDevice(device), "cudaSetDevice");
        if (status.ok()) status = ToStatus(ncclCommAbort(comm), "ncclCommAbort");
        if (!status.ok()) LogError(std::string(status.message()));
      }));
}

void NcclWatchdog::ReleaseAll() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const Watched& watched : communicators_) {
    if (watched.peers != nullptr) watched.peers->window().Release();
  }
}

void NcclWatchdog::AbortAll() {
  std::vector<Watched> communicators;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    communicators = communicators_;
  }
  // As a group, which stops the kernels of all communicators before it frees any of them: freeing
  // device memory waits for the whole device, and so for the kernels of the others.
  (void)ncclGroupStart();
  for (const Watched& watched : communicators) {
    if (const ncclComm_t comm = watched.handle->TakeForAbort(); comm != nullptr) {
      (void)ncclCommAbort(comm);
    }
  }
  if (const absl::Status status = ToStatus(ncclGroupEnd(), "ncclCommAbort"); !status.ok()) {
    LogError(std::string(status.message()));
  }
}

}  // namespace evenkeel
