// Gathers and scatters of rows among the ranks of one host by the GPUs' copy engines: no kernel
// moves the data (one adds up what was scattered), so that it travels beside matrix products that
// take every multiprocessor, where NCCL's kernels would have to wait for some. Internal to
// runtime/comm.
//
// A call is cut into pieces that fit a slot of the window. Of each, a rank copies every peer's part
// into that peer's slot, tells it, waits for the parts from all, and takes them out of its own
// slot: as they are (gather), or their sum in the order of ranks (scatter). Then it tells its peers
// that the slot is free. Calls run one after the other on the stream they are enqueued on, the same
// calls on all ranks.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/comm/cuda/peer_window.h"
#include "runtime/tensor/tensor_view.h"

namespace evenkeel {

class PeerCopies {
 public:
  PeerCopies(std::unique_ptr<PeerWindow> window, int rank, int size)
      : window_(std::move(window)), rank_(rank), size_(size) {}

  // Whether rows like these go this way: enough of them, in units of 16 bytes. The same on all
  // ranks.
  bool Takes(ConstTensorView rows, absl::Span<const int64_t> counts) const;
  // The same of sums, bf16 or float32.
  bool TakesSums(ConstTensorView rows, absl::Span<const int64_t> counts) const;

  // As Communicator::AllGatherAsync and ReduceScatterAsync with kSum; enqueued on `stream`.
  absl::Status Gather(ConstTensorView mine, TensorView all, absl::Span<const int64_t> rows,
                      cudaStream_t stream);
  absl::Status Scatter(ConstTensorView all, TensorView mine, absl::Span<const int64_t> rows,
                       cudaStream_t stream);

  PeerWindow& window() { return *window_; }

 private:
  // How a call's rows are cut: piece k has rows [Begin(r, k), Begin(r, k + 1)) of rank r's.
  struct Cut {
    absl::Span<const int64_t> rows;
    std::vector<int64_t> offsets;  // of each rank's rows among all
    int64_t row_bytes;
    int64_t pieces;
    int64_t part_bytes;  // between the parts of a slot

    int64_t Begin(int r, int64_t k) const { return rows[static_cast<size_t>(r)] * k / pieces; }
    int64_t Bytes(int r, int64_t k) const { return (Begin(r, k + 1) - Begin(r, k)) * row_bytes; }
    int64_t OffsetOf(int r, int64_t k) const {
      return (offsets[static_cast<size_t>(r)] + Begin(r, k)) * row_bytes;
    }
  };
  Cut CutOf(int64_t row_bytes, absl::Span<const int64_t> rows) const;

  // Copies this rank's part of piece `number` to all peers and tells them. `bytes_to(peer)` from
  // `source(peer)` each.
  template <typename Source, typename Bytes>
  absl::Status Send(uint32_t number, const Cut& cut, Source source, Bytes bytes_to,
                    cudaStream_t stream);
  absl::Status AwaitArrival(uint32_t number, cudaStream_t stream);
  absl::Status TellConsumed(uint32_t number, cudaStream_t stream);
  char* SlotOf(int on_rank, uint32_t number, int part, const Cut& cut) const;

  std::unique_ptr<PeerWindow> window_;
  const int rank_, size_;
  uint32_t next_piece_ = 0;  // the number of the next piece of all calls
};

}  // namespace evenkeel
