// Memory through which the ranks of one host reach each other: slots on their GPUs that peers copy
// into (CUDA IPC), and counters in host memory that say how far they are. Internal to runtime/comm.
//
// A counter is written by one rank's stream and waited for by another's; no kernel runs for either
// (stream memory operations), so nothing of the GPU is taken while a rank waits. In host memory
// they can be set by the host, too, which is how a wait for a rank that is gone is ended.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/comm/communicator.h"

namespace evenkeel {

class PeerWindow {
 public:
  // `num_slots` slots of `slot_bytes` on every rank. Collective over `host`, which connects the
  // ranks and outlives the window. Null on all ranks if one of them is on another host, or cannot
  // reach the memory of another; errors are those of `host`.
  static absl::StatusOr<std::unique_ptr<PeerWindow>> Create(Communicator& host, int num_slots,
                                                            int64_t slot_bytes);
  // Frees the memory if Close was called; else it stays, for a peer may still write to it.
  ~PeerWindow();
  PeerWindow(const PeerWindow&) = delete;
  PeerWindow& operator=(const PeerWindow&) = delete;

  int64_t slot_bytes() const { return slot_bytes_; }
  int num_slots() const { return num_slots_; }
  // A rank's slot, in the address space of this one.
  char* Slot(int rank, int slot) const;

  // What of this rank's pieces a peer counts. Both begin at 0.
  enum class Counter { kArrived, kConsumed };

  // Operations for one BatchedWait: a counter of this rank on `peer`, and those of `peer` here.
  CUstreamBatchMemOpParams Write(int peer, Counter counter, uint32_t value) const;
  // Until the counter is `value` or past it.
  CUstreamBatchMemOpParams Await(int peer, Counter counter, uint32_t value) const;
  // Enqueues them, in their order. A write comes after all that was enqueued before it, to be seen
  // by whoever waits for it.
  absl::Status Enqueue(std::vector<CUstreamBatchMemOpParams>& operations,
                       cudaStream_t stream) const;

  // Ends the waits of this rank, as far as no peer sets its counters back: to be repeated.
  // Thread-safe.
  void Release() const;

  // When no rank's streams use the window any more. Collective.
  absl::Status Close();

 private:
  PeerWindow() = default;
  // Maps memory that all ranks of the host share. Collective.
  absl::StatusOr<bool> ShareCounters();
  int64_t OffsetOf(int on_rank, int from, Counter counter) const;
  CUdeviceptr AddressOf(int on_rank, int from, Counter counter) const;

  Communicator* host_ = nullptr;
  int rank_ = 0, size_ = 0;
  int num_slots_ = 0;
  int64_t slot_bytes_ = 0;
  std::vector<char*> bases_;         // of each rank's slots, here
  char* counters_ = nullptr;         // of all ranks, on the host
  char* device_counters_ = nullptr;  // the same for the GPU
};

}  // namespace evenkeel
