#include "runtime/comm/mpi_context.h"

#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/log.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/launch_check.h"
#include "runtime/comm/status_board.h"

namespace evenkeel {

absl::Status ToStatus(int mpi_error, const std::string& what) {
  if (mpi_error == MPI_SUCCESS) return absl::OkStatus();
  std::array<char, MPI_MAX_ERROR_STRING> text = {};
  int length = 0;
  MPI_Error_string(mpi_error, text.data(), &length);
  const std::string message = absl::StrCat(what, ": ", text.data());
  int error_class = MPI_ERR_OTHER;
  MPI_Error_class(mpi_error, &error_class);
  if (error_class == MPI_ERR_NO_MEM) return absl::ResourceExhaustedError(message);
  return absl::InternalError(message);
}

absl::StatusOr<std::shared_ptr<MpiContext>> MpiContext::Create(const MpiOptions& options) {
  std::shared_ptr<MpiContext> context(new MpiContext());
  context->options_ = options;
  int is_initialized = 0;
  MPI_Initialized(&is_initialized);
  if (is_initialized == 0) {
    // A rank must not survive its mpirun, which may have been killed without a chance to end it.
    if (IsStartedByLauncher([](const char* name) { return std::getenv(name); })) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
    }
    int provided = MPI_THREAD_SINGLE;
    EK_RETURN_IF_ERROR(
        ToStatus(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "MPI_Init"));
    context->owns_mpi_ = true;
    if (provided < MPI_THREAD_FUNNELED) {
      return absl::InternalError("this MPI does not support programs with threads");
    }
  }
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  std::array<char, MPI_MAX_PROCESSOR_NAME> host = {};
  int length = 0;
  EK_RETURN_IF_ERROR(
      ToStatus(MPI_Get_processor_name(host.data(), &length), "MPI_Get_processor_name"));
  context->host_ = host.data();
  EK_RETURN_IF_ERROR(context->OpenBoard());
  return context;
}

absl::Status MpiContext::OpenBoard() {
  EK_RETURN_IF_ERROR(
      ToStatus(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local_),
               "MPI_Comm_split_type"));
  MPI_Comm_set_errhandler(local_, MPI_ERRORS_RETURN);
  MPI_Comm_rank(local_, &local_rank_);
  MPI_Comm_size(local_, &local_size_);
  void* mine = nullptr;
  EK_RETURN_IF_ERROR(
      ToStatus(MPI_Win_allocate_shared(sizeof(BoardRow), 1, MPI_INFO_NULL, local_, &mine, &window_),
               "MPI_Win_allocate_shared"));
  // All zero bits is a row whose atomics are zero and whose calls are empty.
  std::memset(mine, 0, sizeof(BoardRow));
  std::vector<BoardRow*> rows;
  for (int r = 0; r < local_size_; ++r) {
    MPI_Aint bytes = 0;
    int unit = 0;
    void* base = nullptr;
    EK_RETURN_IF_ERROR(
        ToStatus(MPI_Win_shared_query(window_, r, &bytes, &unit, &base), "MPI_Win_shared_query"));
    EK_CHECK(reinterpret_cast<uintptr_t>(base) % alignof(BoardRow) == 0) << "board row " << r;
    rows.push_back(static_cast<BoardRow*>(base));
  }
  board_ = std::make_unique<StatusBoard>(std::move(rows), local_rank_);
  return ToStatus(MPI_Barrier(local_), "MPI_Barrier");
}

MpiContext::~MpiContext() {
  int is_initialized = 0, is_finalized = 0;
  MPI_Initialized(&is_initialized);
  MPI_Finalized(&is_finalized);
  if (is_initialized == 0 || is_finalized != 0) return;
  if (is_broken) {
    if (!owns_mpi_) return;
    LogError("a call between ranks was left unfinished; ending the job");
    MPI_Abort(MPI_COMM_WORLD, static_cast<int>(ExitCode::kTimeout));
  }
  // All of these wait for all ranks, MPI_Finalize too.
  if (has_lost_ranks) return;
  board_ = nullptr;
  if (window_ != MPI_WIN_NULL) MPI_Win_free(&window_);
  if (local_ != MPI_COMM_NULL) MPI_Comm_free(&local_);
  if (owns_mpi_) MPI_Finalize();
}

absl::Status MpiContext::AwaitInterrupted(const std::vector<int>& world_ranks) {
  const auto deadline = MonotonicNanoseconds() + static_cast<int64_t>(options_.timeout_s * 1e9);
  for (InterruptedReceive& receive : interrupted_receives) {
    // What comes from a rank that is gone comes no more.
    const bool may_come =
        std::find(world_ranks.begin(), world_ranks.end(), receive.world_rank) != world_ranks.end();
    int is_done = may_come ? 0 : 1;
    while (is_done == 0) {
      EK_RETURN_IF_ERROR(
          ToStatus(MPI_Test(&receive.request, &is_done, MPI_STATUS_IGNORE), "MPI_Test"));
      if (is_done == 0 && MonotonicNanoseconds() > deadline) {
        return absl::DeadlineExceededError(absl::StrCat(
            "the rest of an interrupted message from rank ", receive.world_rank, " does not come"));
      }
    }
  }
  interrupted_receives.clear();
  return absl::OkStatus();
}

int TranslateRank(MPI_Comm from, int rank, MPI_Comm to) {
  MPI_Group from_group = MPI_GROUP_NULL, to_group = MPI_GROUP_NULL;
  MPI_Comm_group(from, &from_group);
  MPI_Comm_group(to, &to_group);
  int result = MPI_UNDEFINED;
  MPI_Group_translate_ranks(from_group, 1, &rank, to_group, &result);
  MPI_Group_free(&from_group);
  MPI_Group_free(&to_group);
  return result == MPI_UNDEFINED ? -1 : result;
}

int MpiContext::LocalRankOf(MPI_Comm comm, int rank) const {
  return TranslateRank(comm, rank, local_);
}

}  // namespace evenkeel
