// Communicator over MPI for host tensors. Internal to runtime/comm: made by MpiRuntime.
#pragma once

#include <mpi.h>

#include <memory>
#include <string>
#include <vector>

#include "runtime/comm/call_board.h"
#include "runtime/comm/communicator.h"
#include "runtime/comm/mpi_context.h"

namespace evenkeel {

// A call, as reports tell of it.
struct MpiCall {
  std::string text;      // AllReduce "gradient bucket 3" on dp
  std::string size;      // "1024 x f32", or empty
  int64_t sequence = 0;  // among the collective calls of the communicator; 0 if not collective
  uint64_t signature = 0;
  std::vector<int> peers;  // of a call that is not collective
};

class MpiCommunicator : public Communicator {
 public:
  // Takes over `comm`. `id` is its place on the status board, the same on all its ranks.
  MpiCommunicator(MPI_Comm comm, int rank, int size, int id, std::string name,
                  std::shared_ptr<MpiContext> context);
  ~MpiCommunicator() override;

  Work AllReduceAsync(TensorView data, ReduceOp op, const std::string& label) override;
  Work BroadcastAsync(TensorView data, int root, const std::string& label) override;
  Work AllGatherAsync(ConstTensorView mine, TensorView all, absl::Span<const int64_t> rows,
                      const std::string& label) override;
  Work ReduceScatterAsync(ConstTensorView all, TensorView mine, absl::Span<const int64_t> rows,
                          ReduceOp op, const std::string& label) override;
  Work AllToAllAsync(ConstTensorView send, absl::Span<const int64_t> send_rows, TensorView recv,
                     absl::Span<const int64_t> recv_rows, const std::string& label) override;
  Work SendRecvAsync(absl::Span<const SendTo> sends, absl::Span<const ReceiveFrom> receives,
                     const std::string& label) override;
  Work BarrierAsync(const std::string& label) override;
  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key,
                                                      const std::string& name) override;
  absl::StatusOr<std::unique_ptr<Communicator>> MakeGroup(absl::Span<const int> ranks,
                                                          const std::string& name) override;
  void NoteLostRanks() override { context_->has_lost_ranks = true; }
  absl::StatusOr<std::unique_ptr<CallBoard>> MakeCallBoard() override;
  void SetStep(int64_t step) override { context_->step = step; }
  [[noreturn]] void Abort(ExitCode code) override;

  MpiContext& context() { return *context_; }
  // The rank in MPI_COMM_WORLD.
  int WorldRankOf(int rank) const;
  // After this every call fails, and the MPI communicator is never freed.
  void MarkBroken();
  // Returns an error if a rank of this host makes another call in place of `call`.
  absl::Status FindMismatch(const MpiCall& call) const;
  // The text of a time-out: who is missing, and where they are.
  std::string DescribeTimeout(const MpiCall& call, double waited_s) const;

 private:
  // Begins collective call `op`. Fails if the communicator is broken or another rank's call
  // differs.
  absl::StatusOr<MpiCall> Begin(const std::string& op, const std::string& label,
                                const std::string& size);
  std::vector<int> LocalRanks() const;
  // The board's next number, agreed by all ranks.
  absl::StatusOr<int> NextBoardId(const std::string& label);

  MPI_Comm comm_;
  std::shared_ptr<MpiContext> context_;  // shared with MpiRuntime and the other communicators
  CallBoard board_;
  int64_t sequence_ = 0;
  bool is_broken_ = false;
};

}  // namespace evenkeel
