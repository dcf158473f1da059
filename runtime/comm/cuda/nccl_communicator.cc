#include "runtime/comm/cuda/nccl_communicator.h"

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/agreement.h"
#include "runtime/comm/status_board.h"
#include "runtime/comm/transfer_size.h"
#include "runtime/device/cuda_status.h"

namespace evenkeel {
namespace {

ncclDataType_t ToNccl(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return ncclFloat32;
    case DType::kF64:
      return ncclFloat64;
    case DType::kBF16:
      return ncclBfloat16;
    case DType::kI32:
      return ncclInt32;
    case DType::kI64:
      return ncclInt64;
    case DType::kF8E4M3:
    case DType::kF8E5M2:
      break;
  }
  EK_CHECK(false) << NameOf(dtype) << " does not travel";
  return ncclInt8;
}

ncclRedOp_t ToNccl(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
      return ncclSum;
    case ReduceOp::kMax:
      return ncclMax;
    case ReduceOp::kMin:
      return ncclMin;
  }
  return ncclSum;
}

void CheckTensor(ConstTensorView view, const std::string& label) {
  EK_CHECK(view.device == Device::kCuda && view.is_dense() && view.rank() >= 1)
      << label << ": NCCL moves dense device tensors, not " << view.shape.ToString();
}

char* At(TensorView view, int64_t offset_bytes) {
  return static_cast<char*>(view.data) + offset_bytes;
}
const char* At(ConstTensorView view, int64_t offset_bytes) {
  return static_cast<const char*>(view.data) + offset_bytes;
}

// Messages to oneself need no NCCL; inside a group it would have to see both ends.
absl::Status CopyOnDevice(const void* from, void* to, int64_t bytes, cudaStream_t stream) {
  if (bytes == 0 || from == to) return absl::OkStatus();
  return ToStatus(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream),
      "cudaMemcpyAsync");
}

absl::Status Send(const void* data, int64_t bytes, int peer, ncclComm_t comm, cudaStream_t stream) {
  if (bytes == 0) return absl::OkStatus();
  return ToStatus(ncclSend(data, static_cast<size_t>(bytes), ncclInt8, peer, comm, stream),
                  "ncclSend");
}

absl::Status Receive(void* data, int64_t bytes, int peer, ncclComm_t comm, cudaStream_t stream) {
  if (bytes == 0) return absl::OkStatus();
  return ToStatus(ncclRecv(data, static_cast<size_t>(bytes), ncclInt8, peer, comm, stream),
                  "ncclRecv");
}

bool AreEqual(absl::Span<const int64_t> rows) {
  return std::all_of(rows.begin(), rows.end(), [&](int64_t n) { return n == rows[0]; });
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> NcclCommunicator::Create(
    Communicator* bootstrap, std::unique_ptr<Communicator> owned, const std::string& name,
    std::shared_ptr<NcclContext> context) {
  EK_ASSIGN_OR_RETURN(std::shared_ptr<CallBoard> board, bootstrap->MakeCallBoard());
  ncclUniqueId id = {};
  int32_t* barrier_flag = nullptr;
  absl::Status status = ToStatus(
      cudaMalloc(reinterpret_cast<void**>(&barrier_flag), sizeof(*barrier_flag)), "cudaMalloc");
  if (status.ok() && bootstrap->rank() == 0) {
    status = ToStatus(ncclGetUniqueId(&id), "ncclGetUniqueId");
  }
  // A rank that fails here would leave the others waiting inside NCCL.
  EK_RETURN_IF_ERROR(AgreeOnStatus(*bootstrap, status, absl::StrCat("NCCL for ", name)));
  constexpr int64_t kWords = sizeof(id) / sizeof(int32_t);
  EK_RETURN_IF_ERROR(bootstrap->Broadcast(TensorView(&id, DType::kI32, {kWords}), 0,
                                          absl::StrCat("NCCL id for ", name)));
  auto handle = NcclHandle::Connect(id, bootstrap->rank(), bootstrap->size(),
                                    context->options().device, name, context->Patience());
  if (!handle.ok()) {
    // To free memory would wait for what may hang.
    if (!context->watchdog().has_failed()) (void)cudaFree(barrier_flag);
    return absl::Status(handle.status().code(),
                        absl::StrCat(handle.status().message(), ", on ",
                                     context->Place(bootstrap->rank(), bootstrap->size())));
  }
  return std::unique_ptr<Communicator>(new NcclCommunicator(bootstrap, std::move(owned), name,
                                                            std::move(context), *std::move(handle),
                                                            std::move(board), barrier_flag));
}

NcclCommunicator::NcclCommunicator(Communicator* bootstrap, std::unique_ptr<Communicator> owned,
                                   const std::string& name, std::shared_ptr<NcclContext> context,
                                   std::shared_ptr<NcclHandle> handle,
                                   std::shared_ptr<CallBoard> board, int32_t* barrier_flag)
    : Communicator(bootstrap->rank(), bootstrap->size(), name),
      bootstrap_(bootstrap),
      owned_bootstrap_(std::move(owned)),
      context_(std::move(context)),
      handle_(std::move(handle)),
      board_(std::move(board)),
      place_(context_->Place(rank(), size())),
      stream_number_(context_->NewStreamNumber()),
      barrier_flag_(barrier_flag) {
  context_->watchdog().Add(NcclWatchdog::Watched{handle_, place_, stream_number_, nullptr});
}

absl::StatusOr<bool> NcclCommunicator::UsePeerCopies(int64_t slot_bytes) {
  EK_ASSIGN_OR_RETURN(std::unique_ptr<PeerWindow> window,
                      PeerWindow::Create(*bootstrap_, kPeerSlots, slot_bytes));
  if (window == nullptr) return false;
  peers_ = std::make_shared<PeerCopies>(std::move(window), rank(), size());
  NcclWatchdog& watchdog = context_->watchdog();
  watchdog.Remove(handle_.get());
  watchdog.Add(NcclWatchdog::Watched{handle_, place_, stream_number_, peers_});
  return true;
}

NcclCommunicator::~NcclCommunicator() {
  NcclWatchdog& watchdog = context_->watchdog();
  const int64_t deadline_ns = context_->Patience().deadline_ns;
  // Calls that never come to an end the watchdog sees to; but one that the compute stream does not
  // let begin is not in its eyes.
  while (last_call_ != nullptr && !last_call_->end.IsComplete() && !watchdog.has_failed()) {
    if (MonotonicNanoseconds() >= deadline_ns) {
      watchdog.Fail(absl::DeadlineExceededError(
          absl::StrCat("the last call on ", name(), " does not end on ", place_)));
    }
    const timespec pause = {0, 100000};
    nanosleep(&pause, nullptr);
  }
  if (!watchdog.has_failed() && !handle_->is_interrupted() && peers_ != nullptr) {
    if (const absl::Status status = peers_->window().Close(); !status.ok()) watchdog.Fail(status);
  }
  if (!watchdog.has_failed() && !handle_->is_interrupted()) {
    WatchedCall closing;
    closing.text = absl::StrCat("closing ", name());
    closing.place = place_;
    closing.sequence = sequence_;
    closing.step = watchdog.step();
    if (const absl::Status status = handle_->Close(closing); !status.ok()) {
      watchdog.Fail(absl::Status(status.code(), absl::StrCat(status.message(), " on ", place_)));
    }
  }
  // The watchdog aborts what was not closed. To free memory would wait for what hangs.
  if (watchdog.has_failed()) return;
  watchdog.Remove(handle_.get());
  (void)cudaFree(barrier_flag_);
}

Work NcclCommunicator::Enqueue(const std::string& op, const std::string& label,
                               const std::string& size, const NcclHandle::GroupCalls& calls,
                               const std::vector<int>* peers) {
  NcclWatchdog& watchdog = context_->watchdog();
  const auto interrupted = [&] {
    return Work(absl::UnavailableError(
        absl::StrCat(op, " \"", label, "\" on ", name(), ": a rank of the group is gone")));
  };
  if (handle_->is_interrupted()) return interrupted();
  WatchedCall call;
  call.text = absl::StrCat(op, " \"", label, "\"",
                           size.empty() ? "" : absl::StrCat(" (", size, ")"), " on ", name());
  call.place = place_;
  call.sequence = ++sequence_;
  call.step = watchdog.step();
  call.stream = stream_number_;
  auto events = std::make_shared<NcclCallEvents>();
  call.has_started = [events] { return events->start.IsComplete(); };
  call.has_ended = [events] { return events->end.IsComplete(); };
  PostCall(op, label, size, peers, call);
  if (!watchdog.has_failed()) {
    if (absl::Status status = TryEnqueue(call, *events, calls); !status.ok()) {
      // A peer that is gone shows here too, as connections break, before anybody says so.
      // But the watchdog's abort is an error here, too.
      if (handle_->may_be_interrupted() && !watchdog.has_failed()) handle_->Interrupt();
      if (handle_->is_interrupted()) return interrupted();
      watchdog.Fail(std::move(status));
    }
  }
  // The first failure, also where this call only came to feel it.
  if (watchdog.has_failed()) return Work(watchdog.status());
  last_call_ = events;
  if (context_->trace().is_on()) context_->trace().Add(call.text, events);
  watchdog.Add(std::move(call));
  return Work(std::make_unique<NcclWork>(context_.get(), std::move(events)));
}

void NcclCommunicator::PostCall(const std::string& op, const std::string& label,
                                const std::string& size, const std::vector<int>* peers,
                                WatchedCall& call) {
  if (board_ == nullptr) return;
  if (peers != nullptr) {
    call.describe_absent = [board = board_, peers = *peers] {
      return board->DescribeAbsent(0, peers);
    };
    return;
  }
  const int64_t sequence = ++collective_sequence_;
  call.describe_absent = [board = board_, sequence] { return board->DescribeAbsent(sequence); };
  const BoardCall posted = {sequence, call.step, SignatureOf(op, label, size),
                            MonotonicNanoseconds(), call.text};
  board_->Post(posted);
  if (absl::Status status = board_->CheckMatch(posted, name()); !status.ok()) {
    context_->watchdog().Fail(std::move(status));
  }
}

absl::Status NcclCommunicator::TryEnqueue(const WatchedCall& call, NcclCallEvents& events,
                                          const NcclHandle::GroupCalls& calls) {
  const auto check = [&](cudaError_t error, const char* what) {
    return ToStatus(error, absl::StrCat(call.text, " on ", call.place, ": ", what));
  };
  const cudaStream_t stream = handle_->stream();
  EK_ASSIGN_OR_RETURN(const CudaEvent input, context_->events().Take());
  EK_ASSIGN_OR_RETURN(events.start, context_->events().Take());
  EK_ASSIGN_OR_RETURN(events.end, context_->events().Take());
  EK_RETURN_IF_ERROR(
      check(cudaEventRecord(input.get(), context_->options().compute_stream), "cudaEventRecord"));
  EK_RETURN_IF_ERROR(check(cudaStreamWaitEvent(stream, input.get(), 0), "cudaStreamWaitEvent"));
  EK_RETURN_IF_ERROR(check(cudaEventRecord(events.start.get(), stream), "cudaEventRecord"));
  if (const absl::Status status = handle_->RunGroup(call, calls); !status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat(call.text, " on ", call.place, " at step ", call.step,
                                     ", call number ", call.sequence, ": ", status.message()));
  }
  return check(cudaEventRecord(events.end.get(), stream), "cudaEventRecord");
}

Work NcclCommunicator::AllReduceAsync(TensorView data, ReduceOp op, const std::string& label) {
  CheckTensor(data, label);
  static constexpr const char* kNames[] = {"AllReduce", "AllReduceMax", "AllReduceMin"};
  return Enqueue(kNames[static_cast<int>(op)], label, DescribeSize(data),
                 [&](ncclComm_t comm, cudaStream_t stream) {
                   const int64_t n = data.num_elements();
                   if (n == 0) return absl::OkStatus();
                   return ToStatus(ncclAllReduce(data.data, data.data, static_cast<size_t>(n),
                                                 ToNccl(data.dtype), ToNccl(op), comm, stream),
                                   "ncclAllReduce");
                 });
}

Work NcclCommunicator::BroadcastAsync(TensorView data, int root, const std::string& label) {
  CheckTensor(data, label);
  EK_CHECK(0 <= root && root < size()) << label << ": root " << root << " of " << size();
  return Enqueue("Broadcast", label, absl::StrCat(DescribeSize(data), " from rank ", root),
                 [&](ncclComm_t comm, cudaStream_t stream) {
                   const int64_t bytes = BytesOf(data);
                   if (bytes == 0) return absl::OkStatus();
                   return ToStatus(ncclBroadcast(data.data, data.data, static_cast<size_t>(bytes),
                                                 ncclInt8, root, comm, stream),
                                   "ncclBroadcast");
                 });
}

Work NcclCommunicator::AllGatherAsync(ConstTensorView mine, TensorView all,
                                      absl::Span<const int64_t> rows, const std::string& label) {
  CheckTensor(mine, label);
  CheckTensor(all, label);
  const std::vector<int64_t> offsets = RowOffsets(rows);
  const auto me = static_cast<size_t>(rank());
  EK_CHECK(rows.size() == static_cast<size_t>(size()) && mine.dim(0) == rows[me] &&
           all.dim(0) == offsets.back() && mine.dtype == all.dtype &&
           RowBytes(mine) == RowBytes(all))
      << label << ": " << mine.shape.ToString() << " into " << all.shape.ToString();
  const int64_t row_bytes = RowBytes(all);
  return Enqueue("AllGather", label, DescribeSize(all), [&](ncclComm_t comm, cudaStream_t stream) {
    if (BytesOf(all) == 0) return absl::OkStatus();
    if (peers_ != nullptr && peers_->Takes(all, rows)) {
      return peers_->Gather(mine, all, rows, stream);
    }
    if (AreEqual(rows)) {
      return ToStatus(ncclAllGather(mine.data, all.data, static_cast<size_t>(BytesOf(mine)),
                                    ncclInt8, comm, stream),
                      "ncclAllGather");
    }
    for (int r = 0; r < size(); ++r) {
      const auto at = static_cast<size_t>(r);
      if (rows[at] == 0) continue;
      void* place = At(all, offsets[at] * row_bytes);
      const void* from = r == rank() ? mine.data : place;  // only the root's is read
      EK_RETURN_IF_ERROR(
          ToStatus(ncclBroadcast(from, place, static_cast<size_t>(rows[at] * row_bytes), ncclInt8,
                                 r, comm, stream),
                   "ncclBroadcast"));
    }
    return absl::OkStatus();
  });
}

Work NcclCommunicator::ReduceScatterAsync(ConstTensorView all, TensorView mine,
                                          absl::Span<const int64_t> rows, ReduceOp op,
                                          const std::string& label) {
  CheckTensor(all, label);
  CheckTensor(mine, label);
  const std::vector<int64_t> offsets = RowOffsets(rows);
  const auto me = static_cast<size_t>(rank());
  EK_CHECK(rows.size() == static_cast<size_t>(size()) && mine.dim(0) == rows[me] &&
           all.dim(0) == offsets.back() && mine.dtype == all.dtype &&
           RowBytes(mine) == RowBytes(all))
      << label << ": " << all.shape.ToString() << " into " << mine.shape.ToString();
  const int64_t row_bytes = RowBytes(all), row_elements = RowElements(all);
  return Enqueue(
      "ReduceScatter", label, DescribeSize(all), [&](ncclComm_t comm, cudaStream_t stream) {
        if (BytesOf(all) == 0) return absl::OkStatus();
        if (peers_ != nullptr && op == ReduceOp::kSum && peers_->TakesSums(all, rows)) {
          return peers_->Scatter(all, mine, rows, stream);
        }
        if (AreEqual(rows)) {
          return ToStatus(
              ncclReduceScatter(all.data, mine.data, static_cast<size_t>(mine.num_elements()),
                                ToNccl(all.dtype), ToNccl(op), comm, stream),
              "ncclReduceScatter");
        }
        for (int r = 0; r < size(); ++r) {
          const auto at = static_cast<size_t>(r);
          if (rows[at] == 0) continue;
          const char* from = At(all, offsets[at] * row_bytes);
          EK_RETURN_IF_ERROR(ToStatus(  // writes only on the root
              ncclReduce(from, mine.data, static_cast<size_t>(rows[at] * row_elements),
                         ToNccl(all.dtype), ToNccl(op), r, comm, stream),
              "ncclReduce"));
        }
        return absl::OkStatus();
      });
}

Work NcclCommunicator::AllToAllAsync(ConstTensorView send, absl::Span<const int64_t> send_rows,
                                     TensorView recv, absl::Span<const int64_t> recv_rows,
                                     const std::string& label) {
  CheckTensor(send, label);
  CheckTensor(recv, label);
  const int64_t row_bytes = RowBytes(recv);
  const std::vector<int64_t> send_at = RowOffsets(send_rows), recv_at = RowOffsets(recv_rows);
  const auto n = static_cast<size_t>(size()), me = static_cast<size_t>(rank());
  EK_CHECK(send_rows.size() == n && recv_rows.size() == n && send.dim(0) == send_at.back() &&
           recv.dim(0) == recv_at.back() && RowBytes(send) == row_bytes &&
           send_rows[me] == recv_rows[me])
      << label << ": " << send.shape.ToString() << " to " << recv.shape.ToString();
  return Enqueue("AllToAll", label, absl::StrCat("rows of ", row_bytes, " bytes"),
                 [&](ncclComm_t comm, cudaStream_t stream) {
                   EK_RETURN_IF_ERROR(CopyOnDevice(At(send, send_at[me] * row_bytes),
                                                   At(recv, recv_at[me] * row_bytes),
                                                   send_rows[me] * row_bytes, stream));
                   for (size_t r = 0; r < n; ++r) {
                     if (r == me) continue;
                     const int peer = static_cast<int>(r);
                     EK_RETURN_IF_ERROR(Send(At(send, send_at[r] * row_bytes),
                                             send_rows[r] * row_bytes, peer, comm, stream));
                     EK_RETURN_IF_ERROR(Receive(At(recv, recv_at[r] * row_bytes),
                                                recv_rows[r] * row_bytes, peer, comm, stream));
                   }
                   return absl::OkStatus();
                 });
}

Work NcclCommunicator::SendRecvAsync(absl::Span<const SendTo> sends,
                                     absl::Span<const ReceiveFrom> receives,
                                     const std::string& label) {
  std::vector<ConstTensorView> to_self;
  std::vector<TensorView> from_self;
  std::vector<int> peers;
  for (const SendTo& send : sends) {
    CheckTensor(send.data, label);
    if (send.peer == rank()) to_self.push_back(send.data);
    peers.push_back(send.peer);
  }
  for (const ReceiveFrom& receive : receives) {
    CheckTensor(receive.data, label);
    if (receive.peer == rank()) from_self.push_back(receive.data);
    peers.push_back(receive.peer);
  }
  std::sort(peers.begin(), peers.end());
  peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
  EK_CHECK(to_self.size() == from_self.size())
      << label << ": " << to_self.size() << " messages of rank " << rank() << " to itself, but "
      << from_self.size() << " receives in the same call";
  for (size_t i = 0; i < to_self.size(); ++i) {
    EK_CHECK(BytesOf(to_self[i]) == BytesOf(from_self[i]))
        << label << ": rank " << rank() << " sends " << to_self[i].shape.ToString()
        << " to itself, but expects " << from_self[i].shape.ToString();
  }
  return Enqueue(
      "SendRecv", label, absl::StrCat(sends.size(), " sends, ", receives.size(), " receives"),
      [&](ncclComm_t comm, cudaStream_t stream) {
        for (size_t i = 0; i < to_self.size(); ++i) {
          EK_RETURN_IF_ERROR(
              CopyOnDevice(to_self[i].data, from_self[i].data, BytesOf(to_self[i]), stream));
        }
        for (const SendTo& send : sends) {
          if (send.peer == rank()) continue;
          EK_RETURN_IF_ERROR(Send(send.data.data, BytesOf(send.data), send.peer, comm, stream));
        }
        for (const ReceiveFrom& receive : receives) {
          if (receive.peer == rank()) continue;
          EK_RETURN_IF_ERROR(
              Receive(receive.data.data, BytesOf(receive.data), receive.peer, comm, stream));
        }
        return absl::OkStatus();
      },
      &peers);
}

Work NcclCommunicator::BarrierAsync(const std::string& label) {
  return Enqueue("Barrier", label, "", [&](ncclComm_t comm, cudaStream_t stream) {
    return ToStatus(
        ncclAllReduce(barrier_flag_, barrier_flag_, 1, ncclInt32, ncclMax, comm, stream),
        "ncclAllReduce");
  });
}

absl::StatusOr<std::unique_ptr<Communicator>> NcclCommunicator::Split(int color, int key,
                                                                      const std::string& name) {
  EK_RETURN_IF_ERROR(context_->watchdog().status());
  // Not by ncclCommSplit: the bootstrap's split has a time-out that names who is missing, and a
  // communicator with an id of its own shares nothing that an abort could leave in use.
  EK_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> part, bootstrap_->Split(color, key, name));
  if (part == nullptr) return std::unique_ptr<Communicator>();
  Communicator* bootstrap = part.get();
  return Create(bootstrap, std::move(part), name, context_);
}

absl::StatusOr<std::unique_ptr<Communicator>> NcclCommunicator::MakeGroup(
    absl::Span<const int> ranks, const std::string& name) {
  EK_RETURN_IF_ERROR(context_->watchdog().status());
  EK_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> part, bootstrap_->MakeGroup(ranks, name));
  Communicator* bootstrap = part.get();
  return Create(bootstrap, std::move(part), name, context_);
}

absl::Status NcclCommunicator::ConnectPairs() {
  // NCCL connects a pair when it first sends, whatever the size: 6 s for all of 8 GPUs of a host.
  int32_t* words = nullptr;
  const auto bytes = 2 * static_cast<size_t>(size()) * sizeof(*words);
  EK_RETURN_IF_ERROR(ToStatus(cudaMalloc(reinterpret_cast<void**>(&words), bytes), "cudaMalloc"));
  std::vector<SendTo> sends;
  std::vector<ReceiveFrom> receives;
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    sends.push_back({peer, ConstTensorView(words + peer, DType::kI32, {1}, Device::kCuda)});
    receives.push_back({peer, TensorView(words + size() + peer, DType::kI32, {1}, Device::kCuda)});
  }
  absl::Status status = SendRecv(sends, receives, "connecting all pairs");
  if (status.ok()) status = ToStatus(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  // What a call that failed had under way may still write here.
  if (status.ok()) (void)cudaFree(words);
  return status;
}

void NcclCommunicator::Abort(ExitCode code) {
  bootstrap_->Abort(code);
  std::_Exit(static_cast<int>(code));
}

}  // namespace evenkeel
