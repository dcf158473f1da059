#include "runtime/comm/cuda/peer_window.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/agreement.h"
#include "runtime/device/cuda_status.h"

namespace evenkeel {
namespace {

// A counter has a line of the cache to itself.
constexpr int64_t kCounterBytes = 128;
constexpr int64_t kMaxRanks = 64;

// The driver's function, found at run time so that the program starts where there is no driver.
using BatchMemOp = decltype(&cuStreamBatchMemOp);
BatchMemOp GetBatchMemOp() {
  static const BatchMemOp function = [] {
    void* address = nullptr;
    cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion("cuStreamBatchMemOp", &address, 12000, cudaEnableDefault,
                                         &result) != cudaSuccess) {
      address = nullptr;
    }
    return reinterpret_cast<BatchMemOp>(address);
  }();
  return function;
}

// Of this start of this machine, in this container.
std::string HostName() {
  std::array<char, 256> name = {};
  (void)gethostname(name.data(), name.size() - 1);
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  return absl::StrCat(name.data(), " ", boot);
}

bool IsTurnedOff() {
  const char* off = std::getenv("NCCL_P2P_DISABLE");
  return off != nullptr && std::strcmp(off, "0") != 0;
}

absl::StatusOr<bool> AllSayYes(Communicator& host, bool mine, const char* label) {
  int64_t yes = mine ? 1 : 0;
  EK_RETURN_IF_ERROR(host.AllReduce(TensorView(&yes, DType::kI64, {1}), ReduceOp::kMin, label));
  return yes == 1;
}

}  // namespace

absl::StatusOr<bool> PeerWindow::ShareCounters() {
  const auto bytes = static_cast<size_t>(size_ * size_ * 2 * kCounterBytes);
  std::string name;
  int file = -1;
  if (rank_ == 0) {
    static int count = 0;
    name = absl::StrCat("/evenkeel-", getpid(), "-", count++);
    (void)shm_unlink(name.c_str());  // of an earlier process with this number
    file = shm_open(name.c_str(), O_CREAT | O_EXCL | O_RDWR, 0600);
    // Filled with zeros, and there: a file that was only made longer ends the process where it is
    // written to and the file system is full.
    if (file >= 0 && posix_fallocate(file, 0, static_cast<off_t>(bytes)) != 0) {
      (void)close(file);
      file = -1;
    }
  }
  EK_ASSIGN_OR_RETURN(name, BroadcastString(*host_, name, 0, "name of shared memory"));
  if (rank_ != 0) file = shm_open(name.c_str(), O_RDWR, 0600);
  void* memory = MAP_FAILED;
  if (file >= 0) memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (file >= 0) (void)close(file);
  bool can = memory != MAP_FAILED;
  if (can) counters_ = static_cast<char*>(memory);
  can = can && cudaHostRegister(memory, bytes, cudaHostRegisterMapped) == cudaSuccess;
  void* on_device = nullptr;
  can = can && cudaHostGetDevicePointer(&on_device, memory, 0) == cudaSuccess;
  device_counters_ = static_cast<char*>(on_device);
  EK_ASSIGN_OR_RETURN(const bool all_can, AllSayYes(*host_, can, "shared counters"));
  if (rank_ == 0) (void)shm_unlink(name.c_str());  // the mappings stay
  return all_can;
}

absl::StatusOr<std::unique_ptr<PeerWindow>> PeerWindow::Create(Communicator& host, int num_slots,
                                                               int64_t slot_bytes) {
  const auto n = static_cast<size_t>(host.size());
  const auto me = static_cast<size_t>(host.rank());
  std::unique_ptr<PeerWindow> window(new PeerWindow);
  window->host_ = &host;
  window->rank_ = host.rank();
  window->size_ = host.size();
  window->num_slots_ = num_slots;
  window->slot_bytes_ = slot_bytes;
  window->bases_.assign(n, nullptr);
  EK_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                      AllGatherStrings(host, HostName(), "names of hosts"));
  const bool can_begin =
      !IsTurnedOff() && host.size() > 1 && host.size() <= kMaxRanks && GetBatchMemOp() != nullptr &&
      std::all_of(names.begin(), names.end(), [&](const auto& x) { return x == names[0]; });
  EK_ASSIGN_OR_RETURN(const bool all_can_begin, AllSayYes(host, can_begin, "copies to peers"));
  if (!all_can_begin) return std::unique_ptr<PeerWindow>();
  EK_ASSIGN_OR_RETURN(bool can, window->ShareCounters());

  const auto bytes = static_cast<size_t>(num_slots * slot_bytes);
  cudaIpcMemHandle_t handle = {};
  void* base = nullptr;
  can = can && cudaMalloc(&base, bytes) == cudaSuccess;
  window->bases_[me] = static_cast<char*>(base);
  can = can && cudaIpcGetMemHandle(&handle, base) == cudaSuccess;
  EK_ASSIGN_OR_RETURN(
      const std::vector<std::string> handles,
      AllGatherStrings(host, std::string(reinterpret_cast<const char*>(&handle), sizeof(handle)),
                       "handles of memory"));
  EK_ASSIGN_OR_RETURN(const bool all_have_memory, AllSayYes(host, can, "memory for peers"));
  can = all_have_memory;
  for (size_t r = 0; r < n && can; ++r) {
    if (r == me) continue;
    std::memcpy(&handle, handles[r].data(), sizeof(handle));
    void* mapped = nullptr;
    can = cudaIpcOpenMemHandle(&mapped, handle, cudaIpcMemLazyEnablePeerAccess) == cudaSuccess;
    window->bases_[r] = static_cast<char*>(mapped);
  }
  (void)cudaGetLastError();  // what is out of reach is no error
  EK_ASSIGN_OR_RETURN(const bool all_reach, AllSayYes(host, can, "memory of peers"));
  if (all_reach) return window;
  EK_RETURN_IF_ERROR(window->Close());
  return std::unique_ptr<PeerWindow>();
}

PeerWindow::~PeerWindow() = default;

char* PeerWindow::Slot(int rank, int slot) const {
  return bases_[static_cast<size_t>(rank)] + slot * slot_bytes_;
}

int64_t PeerWindow::OffsetOf(int on_rank, int from, Counter counter) const {
  const int64_t line = (int64_t{on_rank} * size_ + from) * 2;
  return (line + (counter == Counter::kArrived ? 0 : 1)) * kCounterBytes;
}

CUdeviceptr PeerWindow::AddressOf(int on_rank, int from, Counter counter) const {
  return reinterpret_cast<CUdeviceptr>(device_counters_ + OffsetOf(on_rank, from, counter));
}

CUstreamBatchMemOpParams PeerWindow::Write(int peer, Counter counter, uint32_t value) const {
  CUstreamBatchMemOpParams operation = {};
  operation.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32;
  operation.writeValue.address = AddressOf(peer, rank_, counter);
  operation.writeValue.value = value;
  operation.writeValue.flags = CU_STREAM_WRITE_VALUE_DEFAULT;  // behind a barrier
  return operation;
}

CUstreamBatchMemOpParams PeerWindow::Await(int peer, Counter counter, uint32_t value) const {
  CUstreamBatchMemOpParams operation = {};
  operation.operation = CU_STREAM_MEM_OP_WAIT_VALUE_32;
  operation.waitValue.address = AddressOf(rank_, peer, counter);
  operation.waitValue.value = value;
  operation.waitValue.flags = CU_STREAM_WAIT_VALUE_GEQ;  // of the difference as a signed number
  return operation;
}

absl::Status PeerWindow::Enqueue(std::vector<CUstreamBatchMemOpParams>& operations,
                                 cudaStream_t stream) const {
  const CUresult result =
      GetBatchMemOp()(stream, static_cast<unsigned>(operations.size()), operations.data(), 0);
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("cuStreamBatchMemOp: driver error ", static_cast<int>(result)));
}

void PeerWindow::Release() const {
  // Ahead of all that is waited for: the comparison is of signed differences.
  constexpr uint32_t kFarAhead = uint32_t{1} << 30;
  for (int r = 0; r < size_; ++r) {
    for (const Counter counter : {Counter::kArrived, Counter::kConsumed}) {
      auto* value = reinterpret_cast<uint32_t*>(counters_ + OffsetOf(rank_, r, counter));
      std::atomic_ref<uint32_t>(*value).store(kFarAhead);
    }
  }
}

absl::Status PeerWindow::Close() {
  const auto me = static_cast<size_t>(rank_);
  EK_RETURN_IF_ERROR(host_->Barrier("leaving peers' memory"));
  for (size_t r = 0; r < bases_.size(); ++r) {
    if (r != me && bases_[r] != nullptr) (void)cudaIpcCloseMemHandle(bases_[r]);
  }
  EK_RETURN_IF_ERROR(host_->Barrier("freeing peers' memory"));
  (void)cudaFree(bases_[me]);
  bases_.assign(bases_.size(), nullptr);
  if (counters_ != nullptr) {
    const auto bytes = static_cast<size_t>(size_ * size_ * 2 * kCounterBytes);
    (void)cudaHostUnregister(counters_);
    (void)munmap(counters_, bytes);
    counters_ = nullptr;
  }
  (void)cudaGetLastError();
  return absl::OkStatus();
}

}  // namespace evenkeel
