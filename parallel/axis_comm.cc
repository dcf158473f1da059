#include "parallel/axis_comm.h"

#include <chrono>

namespace evenkeel {
namespace {

double BytesIn(const ConstTensorView& view) {
  return static_cast<double>(view.num_elements() * SizeOf(view.dtype));
}

// Bytes of the messages to others, of `rows` to each rank.
double BytesToOthers(const ConstTensorView& send, absl::Span<const int64_t> rows, int me) {
  int64_t total = 0;
  for (const int64_t n : rows) total += n;
  if (total == 0) return 0;
  const int64_t others = total - rows[static_cast<size_t>(me)];
  return BytesIn(send) * static_cast<double>(others) / static_cast<double>(total);
}

}  // namespace

void CommLog::Count(const std::string& axis, const char* op, double sent_bytes) {
  Volume& volume = volumes_[{axis, op}];
  ++volume.calls;
  volume.sent_bytes += sent_bytes;
}

double CommLog::sent_bytes() const {
  double bytes = 0;
  for (const auto& [_, volume] : volumes_) bytes += volume.sent_bytes;
  return bytes;
}

double CommLog::TakeSentBytes() {
  const double bytes = sent_bytes();
  ClearVolumes();
  return bytes;
}

Work AxisComm::AllReduceAsync(TensorView data, ReduceOp op, const std::string& label) {
  if (has_failed()) return Work();
  log_.Count(axis_, "all-reduce", 2 * BytesIn(data) * (size() - 1) / size());
  return comm_.AllReduceAsync(data, op, label);
}

Work AxisComm::AllGatherAsync(ConstTensorView mine, TensorView all, absl::Span<const int64_t> rows,
                              const std::string& label) {
  if (has_failed()) return Work();
  log_.Count(axis_, "all-gather", BytesIn(mine) * (size() - 1));
  return comm_.AllGatherAsync(mine, all, rows, label);
}

Work AxisComm::ReduceScatterAsync(ConstTensorView all, TensorView mine,
                                  absl::Span<const int64_t> rows, const std::string& label) {
  if (has_failed()) return Work();
  log_.Count(axis_, "reduce-scatter", BytesToOthers(all, rows, rank()));
  return comm_.ReduceScatterAsync(all, mine, rows, ReduceOp::kSum, label);
}

Work AxisComm::AllToAllAsync(ConstTensorView send, absl::Span<const int64_t> send_rows,
                             TensorView recv, absl::Span<const int64_t> recv_rows,
                             const std::string& label) {
  if (has_failed()) return Work();
  log_.Count(axis_, "all-to-all", BytesToOthers(send, send_rows, rank()));
  return comm_.AllToAllAsync(send, send_rows, recv, recv_rows, label);
}

Work AxisComm::SendRecvAsync(absl::Span<const SendTo> sends, absl::Span<const ReceiveFrom> receives,
                             const std::string& label) {
  if (has_failed()) return Work();
  double bytes = 0;
  for (const SendTo& send : sends) bytes += send.peer == rank() ? 0 : BytesIn(send.data);
  log_.Count(axis_, "send", bytes);
  return comm_.SendRecvAsync(sends, receives, label);
}

void AxisComm::Wait(Work& work) {
  const auto begin = std::chrono::steady_clock::now();
  const absl::Status status = work.Wait();
  if (!is_interrupted()) log_.Note(status);
  log_.AddExposed(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
}

void AxisComm::AllReduce(TensorView data, ReduceOp op, const std::string& label) {
  Work work = AllReduceAsync(data, op, label);
  Wait(work);
}

void AxisComm::AllGather(ConstTensorView mine, TensorView all, absl::Span<const int64_t> rows,
                         const std::string& label) {
  Work work = AllGatherAsync(mine, all, rows, label);
  Wait(work);
}

void AxisComm::AllToAll(ConstTensorView send, absl::Span<const int64_t> send_rows, TensorView recv,
                        absl::Span<const int64_t> recv_rows, const std::string& label) {
  Work work = AllToAllAsync(send, send_rows, recv, recv_rows, label);
  Wait(work);
}

}  // namespace evenkeel
