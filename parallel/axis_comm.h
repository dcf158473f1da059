// Communication along one axis of the mesh, as layers and stores use it: no call returns an error.
// The first one is noted in the rank's CommLog, every later call then does nothing, and who runs
// the step asks the log at its end. What is computed in between is thrown away.
//
// The log also counts what goes over each axis, by operation.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/comm/communicator.h"
#include "runtime/tensor/tensor_view.h"

namespace evenkeel {

class CommLog {
 public:
  struct Volume {
    int64_t calls = 0;
    // What this rank sends, by the formulas of the bandwidth-optimal algorithms over n ranks:
    // all-reduce 2 (n - 1) / n of the tensor, all-gather (n - 1) times its rows, reduce-scatter the
    // rows of others, messages what goes to others.
    double sent_bytes = 0;
  };

  // Keeps the first error.
  void Note(const absl::Status& status) { status_.Update(status); }
  const absl::Status& status() const { return status_; }

  void Count(const std::string& axis, const char* op, double sent_bytes);
  // By (axis, operation), since the last ClearVolumes().
  const std::map<std::pair<std::string, std::string>, Volume>& volumes() const { return volumes_; }
  void ClearVolumes() { volumes_.clear(); }
  // Sent over all axes since then; and clears.
  double sent_bytes() const;
  double TakeSentBytes();

  // Seconds that this rank's host has spent waiting since the last call. On a GPU see GpuComm.
  void AddExposed(double seconds) { exposed_seconds_ += seconds; }
  double TakeExposedSeconds() { return std::exchange(exposed_seconds_, 0); }

 private:
  absl::Status status_;
  std::map<std::pair<std::string, std::string>, Volume> volumes_;
  double exposed_seconds_ = 0;
};

// The calls are those of Communicator and mean the same. Who waits, waits through Wait().
class AxisComm {
 public:
  // `axis` names it in the log. Both must outlive it.
  AxisComm(Communicator& comm, std::string axis, CommLog& log)
      : comm_(comm), axis_(std::move(axis)), log_(log) {}

  int rank() const { return comm_.rank(); }
  int size() const { return comm_.size(); }
  CommLog& log() { return log_; }
  // A rank of the axis is gone (Communicator::SetInterrupt). Calls do nothing from then on, which
  // is no error for the log: other axes are whole, and their calls must match on all ranks.
  bool is_interrupted() const { return comm_.is_interrupted(); }

  Work AllReduceAsync(TensorView data, ReduceOp op, const std::string& label);
  Work AllGatherAsync(ConstTensorView mine, TensorView all, absl::Span<const int64_t> rows,
                      const std::string& label);
  Work ReduceScatterAsync(ConstTensorView all, TensorView mine, absl::Span<const int64_t> rows,
                          const std::string& label);
  Work AllToAllAsync(ConstTensorView send, absl::Span<const int64_t> send_rows, TensorView recv,
                     absl::Span<const int64_t> recv_rows, const std::string& label);
  Work SendRecvAsync(absl::Span<const SendTo> sends, absl::Span<const ReceiveFrom> receives,
                     const std::string& label);

  // Waits, notes how it ended and how long it took.
  void Wait(Work& work);
  // Moves a call on: MPI makes progress only inside its calls.
  void Poke(Work& work) { (void)work.Test(); }

  void AllReduce(TensorView data, ReduceOp op, const std::string& label);
  void AllGather(ConstTensorView mine, TensorView all, absl::Span<const int64_t> rows,
                 const std::string& label);
  void AllToAll(ConstTensorView send, absl::Span<const int64_t> send_rows, TensorView recv,
                absl::Span<const int64_t> recv_rows, const std::string& label);

 private:
  bool has_failed() const { return !log_.status().ok() || is_interrupted(); }

  Communicator& comm_;
  std::string axis_;
  CommLog& log_;
};

// Degree and place on an axis that may have one rank alone.
inline int DegreeOf(const AxisComm* axis) {
  return axis == nullptr ? 1 : axis->size();
}
inline int PlaceOn(const AxisComm* axis) {
  return axis == nullptr ? 0 : axis->rank();
}

}  // namespace evenkeel
