// What all MPI communicators of one process share. Internal to runtime/comm.
#pragma once

#include <mpi.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/comm/mpi_runtime.h"
#include "runtime/comm/status_board.h"

namespace evenkeel {

// Converts an MPI error code; `what` names the call. Out of memory is kResourceExhausted.
absl::Status ToStatus(int mpi_error, const std::string& what);

// The number in `to` of a rank of `from`; -1 if it is not there.
int TranslateRank(MPI_Comm from, int rank, MPI_Comm to);

class MpiContext {
 public:
  static absl::StatusOr<std::shared_ptr<MpiContext>> Create(const MpiOptions& options);
  ~MpiContext();
  MpiContext(const MpiContext&) = delete;
  MpiContext& operator=(const MpiContext&) = delete;

  const MpiOptions& options() const { return options_; }
  const std::string& host() const { return host_; }
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }
  StatusBoard& board() { return *board_; }
  // Returns the local rank of a rank of `comm`, or -1 if that rank is on another host.
  int LocalRankOf(MPI_Comm comm, int rank) const;

  int64_t step = 0;
  // The number of the next communicator on the board; agreed by its members when it is made.
  int64_t next_communicator = 0;
  // Waits for what interrupted calls had begun to receive from these ranks of MPI_COMM_WORLD.
  absl::Status AwaitInterrupted(const std::vector<int>& world_ranks);

  // A receive of an interrupted call, cancelled if nothing of it had arrived.
  struct InterruptedReceive {
    MPI_Request request;
    int world_rank;
  };
  std::vector<InterruptedReceive> interrupted_receives;
  // Ranks are gone: what all ranks would have to end together does not end, MPI least of all.
  std::atomic<bool> has_lost_ranks{false};
  // A call was left unfinished: neither windows nor MPI itself can be freed without hanging.
  bool is_broken = false;

 private:
  MpiContext() = default;
  absl::Status OpenBoard();

  MpiOptions options_;
  bool owns_mpi_ = false;
  std::string host_;
  int local_rank_ = 0;
  int local_size_ = 1;
  MPI_Comm local_ = MPI_COMM_NULL;  // the ranks of this host
  MPI_Win window_ = MPI_WIN_NULL;   // the board's memory
  std::unique_ptr<StatusBoard> board_;
};

}  // namespace evenkeel
