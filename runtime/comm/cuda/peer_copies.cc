#include "runtime/comm/cuda/peer_copies.h"

#include <algorithm>

#include "runtime/base/status_macros.h"
#include "runtime/comm/cuda/sum_parts.h"
#include "runtime/comm/transfer_size.h"
#include "runtime/device/cuda_status.h"

namespace evenkeel {
namespace {

// Below that NCCL's kernels, which need no more than a round, are done before the copies begin.
constexpr int64_t kLeastBytes = int64_t{256} << 10;
constexpr int64_t kUnit = 16;

absl::Status CopyOnDevice(const void* from, void* to, int64_t bytes, cudaStream_t stream) {
  if (bytes == 0 || from == to) return absl::OkStatus();
  return ToStatus(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream),
                  "cudaMemcpyAsync");
}

}  // namespace

bool PeerCopies::Takes(ConstTensorView rows, absl::Span<const int64_t> counts) const {
  const int64_t total = RowOffsets(counts).back();
  return RowBytes(rows) % kUnit == 0 && total * RowBytes(rows) >= kLeastBytes &&
         RowBytes(rows) * size_ <= window_->slot_bytes();
}

bool PeerCopies::TakesSums(ConstTensorView rows, absl::Span<const int64_t> counts) const {
  return size_ <= kMaxParts && (rows.dtype == DType::kBF16 || rows.dtype == DType::kF32) &&
         Takes(rows, counts);
}

PeerCopies::Cut PeerCopies::CutOf(int64_t row_bytes, absl::Span<const int64_t> rows) const {
  Cut cut{rows, RowOffsets(rows), row_bytes, 1, 0};
  const int64_t most = *std::max_element(rows.begin(), rows.end());
  // Rows of one part in a slot; a piece has at most ceil(most / pieces) of a rank's.
  const int64_t fit = window_->slot_bytes() / (row_bytes * size_);
  cut.pieces = (most + fit - 1) / fit;
  cut.part_bytes = (most + cut.pieces - 1) / cut.pieces * row_bytes;
  return cut;
}

char* PeerCopies::SlotOf(int on_rank, uint32_t number, int part, const Cut& cut) const {
  const auto slot = static_cast<int>(number % static_cast<uint32_t>(window_->num_slots()));
  return window_->Slot(on_rank, slot) + part * cut.part_bytes;
}

template <typename Source, typename Bytes>
absl::Status PeerCopies::Send(uint32_t number, const Cut& cut, Source source, Bytes bytes_to,
                              cudaStream_t stream) {
  // Counters hold how many pieces there have been, and start at 0: the slot's last piece is done
  // with once num_slots fewer are.
  const auto slots = static_cast<uint32_t>(window_->num_slots());
  std::vector<CUstreamBatchMemOpParams> waits, writes;
  for (int i = 1; i < size_; ++i) {
    const int peer = (rank_ + i) % size_;
    if (number >= slots) {
      waits.push_back(window_->Await(peer, PeerWindow::Counter::kConsumed, number - slots + 1));
    }
    writes.push_back(window_->Write(peer, PeerWindow::Counter::kArrived, number + 1));
  }
  if (!waits.empty()) EK_RETURN_IF_ERROR(window_->Enqueue(waits, stream));
  // Each rank begins with another peer, so that no one receives from all at once.
  for (int i = 1; i < size_; ++i) {
    const int peer = (rank_ + i) % size_;
    EK_RETURN_IF_ERROR(
        CopyOnDevice(source(peer), SlotOf(peer, number, rank_, cut), bytes_to(peer), stream));
  }
  return window_->Enqueue(writes, stream);
}

absl::Status PeerCopies::AwaitArrival(uint32_t number, cudaStream_t stream) {
  std::vector<CUstreamBatchMemOpParams> waits;
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    waits.push_back(window_->Await(peer, PeerWindow::Counter::kArrived, number + 1));
  }
  return window_->Enqueue(waits, stream);
}

absl::Status PeerCopies::TellConsumed(uint32_t number, cudaStream_t stream) {
  std::vector<CUstreamBatchMemOpParams> writes;
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    writes.push_back(window_->Write(peer, PeerWindow::Counter::kConsumed, number + 1));
  }
  return window_->Enqueue(writes, stream);
}

absl::Status PeerCopies::Gather(ConstTensorView mine, TensorView all,
                                absl::Span<const int64_t> rows, cudaStream_t stream) {
  const Cut cut = CutOf(RowBytes(all), rows);
  const auto* from = static_cast<const char*>(mine.data);
  auto* to = static_cast<char*>(all.data);
  const uint32_t first = next_piece_;
  next_piece_ += static_cast<uint32_t>(cut.pieces);
  const auto send = [&](int64_t k) {
    return Send(
        first + static_cast<uint32_t>(k), cut,
        [&](int) { return from + cut.Begin(rank_, k) * cut.row_bytes; },
        [&](int) { return cut.Bytes(rank_, k); }, stream);
  };
  // The next piece is on its way while this one is taken out.
  EK_RETURN_IF_ERROR(send(0));
  EK_RETURN_IF_ERROR(CopyOnDevice(from, to + cut.OffsetOf(rank_, 0),
                                  rows[static_cast<size_t>(rank_)] * cut.row_bytes, stream));
  for (int64_t k = 0; k < cut.pieces; ++k) {
    if (k + 1 < cut.pieces) EK_RETURN_IF_ERROR(send(k + 1));
    const uint32_t number = first + static_cast<uint32_t>(k);
    EK_RETURN_IF_ERROR(AwaitArrival(number, stream));
    for (int peer = 0; peer < size_; ++peer) {
      if (peer == rank_) continue;
      EK_RETURN_IF_ERROR(CopyOnDevice(SlotOf(rank_, number, peer, cut), to + cut.OffsetOf(peer, k),
                                      cut.Bytes(peer, k), stream));
    }
    EK_RETURN_IF_ERROR(TellConsumed(number, stream));
  }
  return absl::OkStatus();
}

absl::Status PeerCopies::Scatter(ConstTensorView all, TensorView mine,
                                 absl::Span<const int64_t> rows, cudaStream_t stream) {
  const Cut cut = CutOf(RowBytes(all), rows);
  const auto* from = static_cast<const char*>(all.data);
  auto* to = static_cast<char*>(mine.data);
  const uint32_t first = next_piece_;
  next_piece_ += static_cast<uint32_t>(cut.pieces);
  const auto send = [&](int64_t k) {
    return Send(
        first + static_cast<uint32_t>(k), cut,
        [&](int peer) { return from + cut.OffsetOf(peer, k); },
        [&](int peer) { return cut.Bytes(peer, k); }, stream);
  };
  EK_RETURN_IF_ERROR(send(0));
  for (int64_t k = 0; k < cut.pieces; ++k) {
    if (k + 1 < cut.pieces) EK_RETURN_IF_ERROR(send(k + 1));
    const uint32_t number = first + static_cast<uint32_t>(k);
    EK_RETURN_IF_ERROR(AwaitArrival(number, stream));
    SumPartsParams sum;
    sum.num_parts = size_;
    sum.is_bf16 = all.dtype == DType::kBF16;
    sum.count = cut.Bytes(rank_, k) / SizeOf(all.dtype);
    sum.out = to + cut.Begin(rank_, k) * cut.row_bytes;
    for (int r = 0; r < size_; ++r) {
      sum.parts[r] = r == rank_ ? from + cut.OffsetOf(rank_, k) : SlotOf(rank_, number, r, cut);
    }
    EK_RETURN_IF_ERROR(ToStatus(LaunchSumParts(sum, stream), "summing the parts of peers"));
    EK_RETURN_IF_ERROR(TellConsumed(number, stream));
  }
  return absl::OkStatus();
}

}  // namespace evenkeel
