#include "runtime/comm/cuda/nccl_handle.h"

#include <sched.h>

#include <ctime>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/status_board.h"
#include "runtime/device/cuda_status.h"

namespace evenkeel {
namespace {

// NCCL's thread takes a group up within microseconds; setting up connections takes longer.
constexpr int64_t kSpinNanoseconds = 200000;
constexpr int64_t kSleepNanoseconds = 20000;

absl::Status Gone(const std::string& what) {
  return absl::CancelledError(absl::StrCat(what, ": the communicator is closed"));
}

}  // namespace

absl::Status ToStatus(ncclResult_t result, const std::string& what) {
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  std::string message = absl::StrCat(what, ": ", ncclGetErrorString(result));
  // What NCCL last logged as an error tells more than the code. It is of the process: the argument
  // is not used.
  const char* detail = ncclGetLastError(nullptr);
  if (detail != nullptr && *detail != '\0') absl::StrAppend(&message, " (", detail, ")");
  if (result == ncclRemoteError) return absl::UnavailableError(message);
  return absl::InternalError(message);
}

absl::StatusOr<std::shared_ptr<NcclHandle>> NcclHandle::Connect(const ncclUniqueId& id, int rank,
                                                                int size, const std::string& name,
                                                                const NcclPatience& patience) {
  std::shared_ptr<NcclHandle> handle(new NcclHandle(name));
  int least = 0, greatest = 0;
  EK_RETURN_IF_ERROR(ToStatus(cudaDeviceGetStreamPriorityRange(&least, &greatest),
                              "cudaDeviceGetStreamPriorityRange"));
  // Of high priority, so that a kernel that moves data gets the next free multiprocessors although
  // the compute stream has work for all of them.
  EK_RETURN_IF_ERROR(
      ToStatus(cudaStreamCreateWithPriority(&handle->stream_, cudaStreamNonBlocking, greatest),
               "cudaStreamCreateWithPriority"));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.commName = handle->name_.c_str();
  const std::string what = absl::StrCat("connecting the ", size, " ranks of ", name);
  absl::Status status =
      ToStatus(ncclCommInitRankConfig(&handle->comm_, size, id, rank, &config), what);
  if (status.ok()) status = handle->AwaitReady(what, patience);
  if (!status.ok()) {
    // Nobody else knows of it yet.
    if (const ncclComm_t comm = handle->TakeForAbort(); comm != nullptr) (void)ncclCommAbort(comm);
    return status;
  }
  return handle;
}

NcclHandle::~NcclHandle() {
  // Does not wait for the stream. A communicator that is still here has not been closed, and
  // destroying it might wait for ever.
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
}

absl::Status NcclHandle::RunGroup(const GroupCalls& calls, const NcclPatience& patience) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (comm_ == nullptr) return Gone("ncclGroupStart");
    EK_RETURN_IF_ERROR(ToStatus(ncclGroupStart(), "ncclGroupStart"));
    absl::Status status = calls(comm_, stream_);
    // Also after an error: the thread must leave the group.
    const absl::Status end = ToStatus(ncclGroupEnd(), "ncclGroupEnd");
    if (status.ok()) status = end;
    EK_RETURN_IF_ERROR(status);
  }
  return AwaitReady("connecting the peers", patience);
}

absl::Status NcclHandle::AwaitReady(const std::string& what, const NcclPatience& patience) {
  const int64_t begin = MonotonicNanoseconds();
  for (;;) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (comm_ == nullptr) return Gone(what);
      ncclResult_t state = ncclInProgress;
      EK_RETURN_IF_ERROR(ToStatus(ncclCommGetAsyncError(comm_, &state), what));
      if (state == ncclSuccess) return absl::OkStatus();
      EK_RETURN_IF_ERROR(ToStatus(state, what));
    }
    if (patience.is_cancelled()) return absl::CancelledError(absl::StrCat(what, ": cancelled"));
    const int64_t now = MonotonicNanoseconds();
    if (now >= patience.deadline_ns)
      return absl::DeadlineExceededError(absl::StrCat(what, " timed out"));
    if (now - begin < kSpinNanoseconds) {
      sched_yield();
      continue;
    }
    const timespec pause = {0, kSleepNanoseconds};
    nanosleep(&pause, nullptr);
  }
}

void NcclHandle::SetInterrupt(std::function<bool()> is_interrupted) {
  const std::lock_guard<std::mutex> lock(mutex_);
  interrupt_ = std::move(is_interrupted);
}

bool NcclHandle::may_be_interrupted() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return interrupt_ != nullptr;
}

bool NcclHandle::is_interrupted() const {
  if (was_interrupted_) return true;
  const std::lock_guard<std::mutex> lock(mutex_);
  return interrupt_ != nullptr && interrupt_();
}

absl::Status NcclHandle::AsyncError() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (comm_ == nullptr) return absl::OkStatus();
  ncclResult_t state = ncclSuccess;
  EK_RETURN_IF_ERROR(ToStatus(ncclCommGetAsyncError(comm_, &state), "ncclCommGetAsyncError"));
  return ToStatus(state, "NCCL");
}

absl::Status NcclHandle::Close(const NcclPatience& patience) {
  const std::string what = absl::StrCat("closing ", name_);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (comm_ == nullptr) return Gone(what);
    EK_RETURN_IF_ERROR(ToStatus(ncclCommFinalize(comm_), what));
  }
  // A finalised communicator is destroyed without waiting for anybody.
  EK_RETURN_IF_ERROR(AwaitReady(what, patience));
  const std::lock_guard<std::mutex> lock(mutex_);
  if (comm_ == nullptr) return Gone(what);
  return ToStatus(ncclCommDestroy(std::exchange(comm_, nullptr)), what);
}

ncclComm_t NcclHandle::TakeForAbort() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(comm_, nullptr);
}

}  // namespace evenkeel
