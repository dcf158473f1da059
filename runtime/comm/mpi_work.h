// One call under way in MPI. Internal to runtime/comm.
#pragma once

#include <mpi.h>

#include <memory>
#include <string>
#include <vector>

#include "runtime/comm/communicator.h"
#include "runtime/comm/mpi_communicator.h"

namespace evenkeel {

// Owns the requests of a call and what must stay in place until they complete.
class MpiWork : public Work::Pending {
 public:
  MpiWork(MpiCommunicator* comm, MpiCall call) : comm_(comm), call_(std::move(call)) {}
  ~MpiWork() override;

  bool Test() override;
  absl::Status Wait() override;

  static absl::Status Interrupted(const MpiCall& call);

  // For starting the call: hands out where MPI puts a request.
  MPI_Request* AddRequest();
  // A receive must fill its buffer exactly.
  MPI_Request* AddReceive(int peer, int64_t num_bytes);
  // Notes an error of a starting call; the work then completes with it once the requests that were
  // started are done.
  void NoteError(int mpi_error);
  // Keeps counts or offsets per rank where MPI can read them while the call is under way.
  const int* AddCounts(std::vector<int> counts) {
    return counts_.emplace_back(std::move(counts)).data();
  }
  // A type of `num_bytes` contiguous bytes, freed with the work.
  MPI_Datatype AddRowType(int64_t num_bytes);

 private:
  struct Receive {
    size_t request;
    int peer;
    int64_t num_bytes;
  };

  // Takes back what has not begun; the rest is left to the context.
  void Interrupt();
  void Finish(absl::Status status);
  absl::Status CheckReceives();

  MpiCommunicator* comm_;
  MpiCall call_;
  std::vector<MPI_Request> requests_;
  std::vector<MPI_Status> statuses_;
  std::vector<Receive> receives_;
  std::vector<std::vector<int>> counts_;
  std::vector<MPI_Datatype> types_;
  absl::Status start_status_;
  absl::Status status_;
  bool is_finished_ = false;
  bool has_failed_ = false;  // timed out or mismatched: nobody waits for it again at destruction
};

}  // namespace evenkeel
