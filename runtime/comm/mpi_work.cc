#include "runtime/comm/mpi_work.h"

#include <sched.h>

#include <climits>
#include <ctime>

#include "absl/strings/str_cat.h"
#include "runtime/base/log.h"

namespace evenkeel {
namespace {

// A wait polls for this long, giving way to other processes, before it sleeps between polls: short
// enough to leave the processor to ranks that compute, long enough for most transfers.
constexpr int64_t kSpinNanoseconds = 500000;
constexpr int64_t kSleepNanoseconds = 20000;
// Between looks at what the other ranks are doing.
constexpr int64_t kCheckNanoseconds = 20000000;

}  // namespace

MpiWork::~MpiWork() {
  if (!is_finished_ && !has_failed_) {
    const absl::Status status = Wait();
    if (!status.ok() && !comm_->is_interrupted()) LogError(std::string(status.message()));
  }
  if (!is_finished_) {
    // MPI still writes to these buffers and reads these counts; the program is about to end.
    comm_->MarkBroken();
    new std::vector<std::vector<int>>(std::move(counts_));
    return;
  }
  for (MPI_Datatype& type : types_) MPI_Type_free(&type);
}

MPI_Request* MpiWork::AddRequest() {
  requests_.push_back(MPI_REQUEST_NULL);
  return &requests_.back();
}

MPI_Request* MpiWork::AddReceive(int peer, int64_t num_bytes) {
  receives_.push_back({requests_.size(), peer, num_bytes});
  return AddRequest();
}

void MpiWork::NoteError(int mpi_error) {
  if (start_status_.ok()) start_status_ = ToStatus(mpi_error, call_.text);
}

MPI_Datatype MpiWork::AddRowType(int64_t num_bytes) {
  EK_CHECK(num_bytes <= INT_MAX) << "a row of " << num_bytes << " bytes in " << call_.text;
  MPI_Datatype type = MPI_DATATYPE_NULL;
  NoteError(MPI_Type_contiguous(static_cast<int>(num_bytes), MPI_BYTE, &type));
  NoteError(MPI_Type_commit(&type));
  types_.push_back(type);
  return type;
}

bool MpiWork::Test() {
  if (is_finished_) return true;
  statuses_.resize(requests_.size());
  int is_done = 0;
  const int error =
      MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &is_done, statuses_.data());
  if (error != MPI_SUCCESS) {
    int first = error;
    for (const MPI_Status& status : statuses_) {
      if (error == MPI_ERR_IN_STATUS && status.MPI_ERROR != MPI_SUCCESS &&
          status.MPI_ERROR != MPI_ERR_PENDING) {
        first = status.MPI_ERROR;
        break;
      }
    }
    comm_->MarkBroken();
    // Different calls also show as a transfer that MPI finds truncated: the cause says more.
    const absl::Status mismatch = comm_->FindMismatch(call_);
    Finish(mismatch.ok() ? ToStatus(first, call_.text) : mismatch);
  } else if (is_done != 0) {
    Finish(start_status_.ok() ? CheckReceives() : start_status_);
  }
  return is_finished_;
}

absl::Status MpiWork::CheckReceives() {
  for (const Receive& receive : receives_) {
    MPI_Count num_bytes = 0;
    MPI_Get_elements_x(&statuses_[receive.request], MPI_BYTE, &num_bytes);
    if (num_bytes != receive.num_bytes) {
      return absl::FailedPreconditionError(
          absl::StrCat(call_.text, ": rank ", receive.peer, " sent ", num_bytes, " bytes to rank ",
                       comm_->rank(), ", which expects ", receive.num_bytes));
    }
  }
  return absl::OkStatus();
}

void MpiWork::Finish(absl::Status status) {
  status_ = std::move(status);
  is_finished_ = true;
}

absl::Status MpiWork::Interrupted(const MpiCall& call) {
  return absl::UnavailableError(absl::StrCat(call.text, ": a rank of the group is gone"));
}

void MpiWork::Interrupt() {
  MpiContext& context = comm_->context();
  for (const Receive& receive : receives_) {
    MPI_Request& request = requests_[receive.request];
    if (request == MPI_REQUEST_NULL) continue;
    // Not of a message that has begun to arrive.
    (void)MPI_Cancel(&request);
    context.interrupted_receives.push_back({request, comm_->WorldRankOf(receive.peer)});
    request = MPI_REQUEST_NULL;
  }
  for (MPI_Request& request : requests_) {
    // A send whose receiver has taken its side back never completes, and needs nothing.
    if (request != MPI_REQUEST_NULL) (void)MPI_Request_free(&request);
  }
  Finish(Interrupted(call_));
}

absl::Status MpiWork::Wait() {
  if (Test()) return status_;
  MpiContext& context = comm_->context();
  const int64_t begin = MonotonicNanoseconds();
  const int64_t deadline = begin + static_cast<int64_t>(context.options().timeout_s * 1e9);
  int64_t next_check = begin + kCheckNanoseconds;
  context.board().BeginWait({call_.sequence, context.step, call_.signature, begin, call_.text});
  absl::Status status;
  while (!Test()) {
    if (comm_->is_interrupted()) {
      Interrupt();
      break;
    }
    const int64_t now = MonotonicNanoseconds();
    if (now - begin < kSpinNanoseconds) {
      sched_yield();
      continue;
    }
    if (now >= next_check) {
      next_check = now + kCheckNanoseconds;
      if (status = comm_->FindMismatch(call_); !status.ok()) break;
    }
    if (now >= deadline) {
      status = absl::DeadlineExceededError(
          comm_->DescribeTimeout(call_, static_cast<double>(now - begin) * 1e-9));
      break;
    }
    const timespec pause = {0, kSleepNanoseconds};
    nanosleep(&pause, nullptr);
  }
  context.board().EndWait();
  has_failed_ = !status.ok();
  return is_finished_ ? status_ : status;
}

}  // namespace evenkeel
