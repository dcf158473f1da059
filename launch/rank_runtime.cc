#include "launch/rank_runtime.h"

#include <cstdlib>
#include <optional>
#include <string>

#include "launch/machine.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/log.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/launch_check.h"
#include "runtime/comm/mpi_runtime.h"
#include "runtime/comm/self_communicator.h"

namespace evenkeel {
namespace {

// Errors after which ranks may wait for each other forever: the job has to be ended.
bool LeavesPeersWaiting(ExitCode code) {
  return code == ExitCode::kTimeout || code == ExitCode::kPeersLost ||
         code == ExitCode::kOutOfMemory || code == ExitCode::kInternal;
}

absl::Status RunBody(const RankOptions& options, Communicator& comm, int local_size,
                     const std::function<absl::Status(const RankRuntime&)>& body) {
  InitLog(comm.rank(), /*quiet=*/comm.rank() != 0);
  ThreadPool pool(ThreadsPerRank(options.threads, local_size));
  MemoryTracker tracker;
  EK_ASSIGN_OR_RETURN(Arena arena, Arena::Create(PhysicalMemoryBytes(), tracker));
  const OpContext context{pool, arena, options.dtype};
  return body({context, comm, tracker, local_size});
}

}  // namespace

absl::Status RunOnRank(const RankOptions& options,
                       const std::function<absl::Status(const RankRuntime&)>& body) {
  const GetEnvironment get = [](const char* name) -> const char* { return std::getenv(name); };
  if (!IsStartedByLauncher(get)) {
    if (options.many_ranks) EK_RETURN_IF_ERROR(CheckLaunch(/*world_size=*/1, get));
    return RunBody(options, *MakeSelfCommunicator(), /*local_size=*/1, body);
  }
  EK_ASSIGN_OR_RETURN(MpiRuntime mpi, MpiRuntime::Create({options.timeout_s}));
  absl::Status status;
  if (options.many_ranks) status = CheckLaunch(mpi.world().size(), get);
  if (status.ok()) status = RunBody(options, mpi.world(), mpi.local_size(), body);
  if (!status.ok() && LeavesPeersWaiting(ExitCodeOf(status)) && mpi.world().size() > 1) {
    LogError(std::string(status.message()));
    mpi.world().Abort(ExitCodeOf(status));
  }
  return status;
}

}  // namespace evenkeel
