#include "runtime/comm/communicator.h"

#include "runtime/comm/call_board.h"

namespace evenkeel {

absl::StatusOr<std::unique_ptr<CallBoard>> Communicator::MakeCallBoard() {
  return std::unique_ptr<CallBoard>();
}

absl::Status Work::Wait() {
  if (pending_ == nullptr) return status_;
  absl::Status status = pending_->Wait();
  // An unfinished call stays pending: its buffers are still in use.
  if (!pending_->Test()) return status;
  status_ = pending_->Wait();  // the outcome, should the call have ended right after its time-out
  pending_ = nullptr;
  return status_;
}

absl::Status Communicator::AllReduce(TensorView data, ReduceOp op, const std::string& label) {
  return AllReduceAsync(data, op, label).Wait();
}

absl::Status Communicator::Broadcast(TensorView data, int root, const std::string& label) {
  return BroadcastAsync(data, root, label).Wait();
}

absl::Status Communicator::AllGather(ConstTensorView mine, TensorView all,
                                     absl::Span<const int64_t> rows, const std::string& label) {
  return AllGatherAsync(mine, all, rows, label).Wait();
}

absl::Status Communicator::ReduceScatter(ConstTensorView all, TensorView mine,
                                         absl::Span<const int64_t> rows, ReduceOp op,
                                         const std::string& label) {
  return ReduceScatterAsync(all, mine, rows, op, label).Wait();
}

absl::Status Communicator::AllToAll(ConstTensorView send, absl::Span<const int64_t> send_rows,
                                    TensorView recv, absl::Span<const int64_t> recv_rows,
                                    const std::string& label) {
  return AllToAllAsync(send, send_rows, recv, recv_rows, label).Wait();
}

absl::Status Communicator::SendRecv(absl::Span<const SendTo> sends,
                                    absl::Span<const ReceiveFrom> receives,
                                    const std::string& label) {
  return SendRecvAsync(sends, receives, label).Wait();
}

absl::Status Communicator::Barrier(const std::string& label) {
  return BarrierAsync(label).Wait();
}

absl::Status Communicator::AllGather(ConstTensorView mine, TensorView all,
                                     const std::string& label) {
  const std::vector<int64_t> rows(static_cast<size_t>(size()), mine.dim(0));
  return AllGather(mine, all, rows, label);
}

}  // namespace evenkeel
