// A group of ranks and what they do together. The one virtual interface of the project: host
// tensors travel over MPI (mpi_runtime.h), device tensors over NCCL (cuda/nccl_runtime.h, which
// says what is different there), one rank alone needs no library (self_communicator.h).
//
// Collective calls: every rank of the group makes the same calls in the same order with the same
// label. The label ("gradient bucket 3") names a call in time-out reports, and ranks whose calls
// differ are told so where the implementation can see it. A communicator is used by one thread at a
// time. Tensors are dense, unless said otherwise, and stay untouched until the call is complete.
//
// Reductions are deterministic: the same values on the same ranks in a tensor of the same size give
// the same bits, on every rank and in every run. The order of the sum may depend on the number of
// ranks and on the size, so a sum over other buckets or another number of ranks may round
// otherwise. kMax and kMin of NaN are unspecified; a sum keeps NaN.
//
// Errors: kDeadlineExceeded if the peers do not arrive in time (the message names call, label,
// communicator, step, this rank and the ranks that are missing); kFailedPrecondition if ranks make
// different calls; kInternal for an error of the library. After any of them the communicator can
// not be used again: the program reports and calls Abort().
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/base/exit_code.h"
#include "runtime/tensor/tensor_view.h"

namespace evenkeel {

enum class ReduceOp : uint8_t { kSum, kMax, kMin };

// A call under way. Movable, not copyable; a default Work is complete. Destroying one that is under
// way waits for it. The communicator must outlive it.
class Work {
 public:
  // What an implementation provides.
  class Pending {
   public:
    virtual ~Pending() = default;
    // Makes progress; returns whether the call is complete, successfully or not.
    virtual bool Test() = 0;
    // Blocks until complete or the time-out. May be called again after kDeadlineExceeded.
    virtual absl::Status Wait() = 0;
  };

  Work() = default;
  explicit Work(absl::Status status) : status_(std::move(status)) {}
  explicit Work(std::unique_ptr<Pending> pending) : pending_(std::move(pending)) {}

  // Returns whether the call is complete, successfully or not, and moves it on if not: transfers
  // make progress only inside calls of the communication library.
  bool Test() { return pending_ == nullptr || pending_->Test(); }

  // Blocks until the call is complete and returns its outcome, the same one however often asked.
  // Over NCCL it blocks the compute stream, not the host, and the outcome is not known yet.
  absl::Status Wait();

 private:
  std::unique_ptr<Pending> pending_;
  absl::Status status_;
};

// One message of a group. A zero-sized message is sent all the same: both sides must name it.
struct SendTo {
  int peer;
  ConstTensorView data;
};
struct ReceiveFrom {
  int peer;
  TensorView data;
};

class CallBoard;

class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  const std::string& name() const { return name_; }

  // Reduces `data` (float32, float64, int32, int64; over NCCL also bf16) over the ranks, in place.
  virtual Work AllReduceAsync(TensorView data, ReduceOp op, const std::string& label) = 0;

  // Copies `data` of rank `root` to every rank.
  virtual Work BroadcastAsync(TensorView data, int root, const std::string& label) = 0;

  // Concatenates the rows of all ranks in rank order. `rows[r]` is the number of rows of rank r,
  // the same on every rank. `mine` may be its own place in `all`.
  virtual Work AllGatherAsync(ConstTensorView mine,  // [rows[rank], ...]
                              TensorView all,        // [sum(rows), ...]
                              absl::Span<const int64_t> rows, const std::string& label) = 0;

  // Reduces `all` over the ranks and leaves each rank its rows of the result.
  virtual Work ReduceScatterAsync(ConstTensorView all,  // [sum(rows), ...]
                                  TensorView mine,      // [rows[rank], ...]
                                  absl::Span<const int64_t> rows, ReduceOp op,
                                  const std::string& label) = 0;

  // Sends rows to every rank and receives rows from every rank, both laid out in rank order. What
  // rank a sends to b (send_rows[b] on a) equals what b expects of a (recv_rows[a] on b).
  virtual Work AllToAllAsync(ConstTensorView send,  // [sum(send_rows), ...]
                             absl::Span<const int64_t> send_rows,
                             TensorView recv,  // [sum(recv_rows), ...]
                             absl::Span<const int64_t> recv_rows, const std::string& label) = 0;

  // Sends and receives a group of messages at once. Only the ranks concerned call it; messages
  // between two ranks match in the order of the calls and, within one, of the lists. Not
  // collective.
  virtual Work SendRecvAsync(absl::Span<const SendTo> sends, absl::Span<const ReceiveFrom> receives,
                             const std::string& label) = 0;

  // Complete when every rank has called it.
  virtual Work BarrierAsync(const std::string& label) = 0;

  // The same calls, blocking. On a time-out the call is left behind unfinished.
  absl::Status AllReduce(TensorView data, ReduceOp op, const std::string& label);
  absl::Status Broadcast(TensorView data, int root, const std::string& label);
  absl::Status AllGather(ConstTensorView mine, TensorView all, absl::Span<const int64_t> rows,
                         const std::string& label);
  absl::Status ReduceScatter(ConstTensorView all, TensorView mine, absl::Span<const int64_t> rows,
                             ReduceOp op, const std::string& label);
  absl::Status AllToAll(ConstTensorView send, absl::Span<const int64_t> send_rows, TensorView recv,
                        absl::Span<const int64_t> recv_rows, const std::string& label);
  absl::Status SendRecv(absl::Span<const SendTo> sends, absl::Span<const ReceiveFrom> receives,
                        const std::string& label);
  absl::Status Barrier(const std::string& label);

  // With the same number of rows on every rank.
  absl::Status AllGather(ConstTensorView mine, TensorView all, const std::string& label);

  // Divides the group: ranks that pass the same `color` (>= 0) form a new one, ordered by `key`,
  // then by rank here. A negative color gives null. Collective; groups are also destroyed in the
  // same order on all their ranks.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key,
                                                              const std::string& name) = 0;

  // Makes the connections between all pairs of ranks now, which a backend else makes when the first
  // message of a pair needs one, in the middle of a step. All ranks call it; blocks.
  virtual absl::Status ConnectPairs() { return absl::OkStatus(); }

  // Makes a group of `ranks` of this one, in ascending order, this rank among them; all of them
  // call it, and need none of the others, who may be gone. What calls that were interrupted had
  // under way between these ranks is over when it returns.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> MakeGroup(absl::Span<const int> ranks,
                                                                  const std::string& name) = 0;

  // Lets calls end that can not be completed because a peer is gone: once `is_interrupted`, which
  // is thread-safe and stays true, SendRecvAsync and waits for it, under way or to come, fail with
  // kUnavailable. The group is then of no more use; other groups are. The tensors of such calls
  // stay in place until MakeGroup has returned, or the program ends. Collective calls can not be
  // interrupted: a group that may be makes none.
  virtual void SetInterrupt(std::function<bool()> is_interrupted) {
    interrupt_ = std::move(is_interrupted);
  }
  // Whether that has happened, or, over NCCL, a peer was found gone. Stays true.
  virtual bool is_interrupted() const { return interrupt_ != nullptr && interrupt_(); }

  // Ranks of the job are gone: what ends only together with them, as MPI does, is left out from now
  // on. Thread-safe.
  virtual void NoteLostRanks() {}

  // Lets large AllGatherAsync and ReduceScatterAsync of rows go by the GPUs' copy engines if all
  // ranks are on one host and reach each other's memory, and returns whether they do; else nothing
  // changes. Takes kPeerWindowBytes of each GPU. All ranks call it. NCCL_P2P_DISABLE=1 in the
  // environment forbids it.
  static constexpr int64_t kPeerWindowBytes = int64_t{64} << 20;
  virtual absl::StatusOr<bool> UsePeerCopies() { return false; }

  // A place on the host's status board for the calls of another communicator of the same ranks;
  // null without a board. All ranks call it. Must be gone before MPI is.
  virtual absl::StatusOr<std::unique_ptr<CallBoard>> MakeCallBoard();

  // The training step, for reports; holds for all communicators of this rank.
  virtual void SetStep(int64_t step) = 0;

  // Ends the whole job at once with this exit code.
  [[noreturn]] virtual void Abort(ExitCode code) = 0;

 protected:
  Communicator(int rank, int size, std::string name)
      : rank_(rank), size_(size), name_(std::move(name)) {}

 private:
  int rank_;
  int size_;
  std::string name_;
  std::function<bool()> interrupt_;
};

}  // namespace evenkeel
