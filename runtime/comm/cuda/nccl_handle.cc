#include "runtime/comm/cuda/nccl_handle.h"

#include <chrono>
#include <condition_variable>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/status_board.h"
#include "runtime/device/cuda_status.h"

namespace evenkeel {
namespace {

constexpr std::chrono::milliseconds kPeriod(10);
constexpr std::chrono::seconds kTimeToLeave(1);

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
  // NCCL takes memory of its own when a communicator or a pair of ranks is first used.
  size_t free = 0, total = 0;
  if (result == ncclUnhandledCudaError && absl::StrContains(message, "out of memory") &&
      cudaMemGetInfo(&free, &total) == cudaSuccess) {
    absl::StrAppend(&message, "; ", free >> 20, " of ", total >> 20,
                    " MiB of the GPU are free, and NCCL needs some of its own: leave more with "
                    "runtime.recompute=layer, a smaller train.micro_batch_size, more ranks or "
                    "shorter samples");
    return absl::ResourceExhaustedError(message);
  }
  return absl::InternalError(message);
}

class NcclHandle::InsideScope {
 public:
  InsideScope(NcclHandle& handle, const WatchedCall& call) : handle_(handle) {
    Set(&call, MonotonicNanoseconds());
  }
  ~InsideScope() { Set(nullptr, 0); }
  InsideScope(const InsideScope&) = delete;
  InsideScope& operator=(const InsideScope&) = delete;

 private:
  void Set(const WatchedCall* call, int64_t since_ns) {
    const std::lock_guard<std::mutex> lock(handle_.mutex_);
    handle_.inside_ = call;
    handle_.inside_since_ns_ = since_ns;
  }

  NcclHandle& handle_;
};

absl::StatusOr<std::shared_ptr<NcclHandle>> NcclHandle::Connect(const ncclUniqueId& id, int rank,
                                                                int size, int device,
                                                                const std::string& name,
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

  // On a thread of its own, which this one can leave behind.
  struct Connecting {
    std::mutex mutex;
    std::condition_variable is_done;
    std::optional<absl::Status> status;
  };
  const auto connecting = std::make_shared<Connecting>();
  const std::string what = absl::StrCat("connecting the ", size, " ranks of ", name);
  std::thread([connecting, handle, id, rank, size, device, what] {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 1;
    config.commName = handle->name_.c_str();
    ncclComm_t comm = nullptr;
    absl::Status status = ToStatus(cudaSetDevice(device), "cudaSetDevice");
    if (status.ok())
      status = ToStatus(ncclCommInitRankConfig(&comm, size, id, rank, &config), what);
    if (status.ok()) handle->comm_ = comm;
    const std::lock_guard<std::mutex> lock(connecting->mutex);
    connecting->status = std::move(status);
    connecting->is_done.notify_all();
  }).detach();

  std::unique_lock<std::mutex> lock(connecting->mutex);
  while (!connecting->is_done.wait_for(lock, kPeriod,
                                       [&] { return connecting->status.has_value(); })) {
    if (patience.is_cancelled()) return absl::CancelledError(absl::StrCat(what, ": cancelled"));
    if (MonotonicNanoseconds() >= patience.deadline_ns) {
      return absl::DeadlineExceededError(absl::StrCat(what, " timed out"));
    }
  }
  EK_RETURN_IF_ERROR(*connecting->status);
  return handle;
}

NcclHandle::~NcclHandle() {
  // Does not wait for the stream. A communicator that is still here has not been closed, and
  // destroying it might wait for ever.
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
}

absl::Status NcclHandle::RunGroup(const WatchedCall& call, const GroupCalls& calls) {
  const InsideScope inside(*this, call);
  const std::lock_guard<std::timed_mutex> lock(nccl_mutex_);
  const ncclComm_t comm = comm_;
  if (comm == nullptr) return Gone("ncclGroupStart");
  EK_RETURN_IF_ERROR(ToStatus(ncclGroupStart(), "ncclGroupStart"));
  absl::Status status = calls(comm, stream_);
  // Also after an error: the thread must leave the group.
  const absl::Status end = ToStatus(ncclGroupEnd(), "ncclGroupEnd");
  if (status.ok()) status = end;
  return status;
}

std::optional<std::string> NcclHandle::FindOverdue(int64_t now_ns, double timeout_s) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (inside_ == nullptr) return std::nullopt;
  const double waited_s = static_cast<double>(now_ns - inside_since_ns_) * 1e-9;
  if (waited_s <= timeout_s) return std::nullopt;
  return DescribeTimeout(*inside_, waited_s);
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
  const std::unique_lock<std::timed_mutex> lock(nccl_mutex_, std::try_to_lock);
  if (!lock.owns_lock()) return absl::OkStatus();
  const ncclComm_t comm = comm_;
  if (comm == nullptr) return absl::OkStatus();
  ncclResult_t state = ncclSuccess;
  EK_RETURN_IF_ERROR(ToStatus(ncclCommGetAsyncError(comm, &state), "ncclCommGetAsyncError"));
  return ToStatus(state, "NCCL");
}

absl::Status NcclHandle::Close(const WatchedCall& call) {
  const InsideScope inside(*this, call);
  const std::lock_guard<std::timed_mutex> lock(nccl_mutex_);
  const ncclComm_t comm = comm_;
  if (comm == nullptr) return Gone(call.text);
  EK_RETURN_IF_ERROR(ToStatus(ncclCommFinalize(comm), call.text));
  // A finalised communicator is destroyed without waiting for anybody.
  comm_ = nullptr;
  return ToStatus(ncclCommDestroy(comm), call.text);
}

ncclComm_t NcclHandle::TakeForAbort() {
  const std::unique_lock<std::timed_mutex> lock(nccl_mutex_, kTimeToLeave);
  return comm_.exchange(nullptr);
}

}  // namespace evenkeel
