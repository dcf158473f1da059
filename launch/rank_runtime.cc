#include "launch/rank_runtime.h"

#include <cstdlib>
#include <optional>
#include <string>

#include "launch/failure_report.h"
#include "launch/machine.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/log.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/with_cuda.h"
#include "runtime/comm/agreement.h"
#include "runtime/comm/launch_check.h"
#include "runtime/comm/mpi_runtime.h"
#include "runtime/comm/self_communicator.h"
#include "runtime/ops/gpu.h"

namespace evenkeel {
namespace {

// Errors after which ranks may wait for each other forever: the job has to be ended.
bool LeavesPeersWaiting(ExitCode code) {
  return code == ExitCode::kTimeout || code == ExitCode::kPeersLost ||
         code == ExitCode::kOutOfMemory || code == ExitCode::kInternal;
}

using Body = std::function<absl::Status(const RankRuntime&)>;

// What mpirun said of this process.
struct Place {
  int local_rank = 0;
  int local_size = 1;
};

absl::Status RunOnCpu(const RankOptions& options, Communicator& comm, const Place& place,
                      StartClock& start_clock, const Body& body) {
  ThreadPool pool(ThreadsPerRank(options.threads, place.local_size));
  MemoryTracker tracker;
  const int64_t memory = PhysicalMemoryBytes();
  EK_ASSIGN_OR_RETURN(Arena arena, Arena::Create(memory, tracker));
  const OpContext context{pool, arena, options.dtype};
  return body({context, comm, nullptr, tracker, {memory, place.local_size, "host"}, start_clock});
}

// What can fail on one rank alone comes first and is agreed upon: nobody waits for a rank that
// left.
absl::Status RunOnGpu(const RankOptions& options, Communicator& comm, const Place& place,
                      StartClock& start_clock, const Body& body) {
  const int64_t share = options.ranks_per_gpu;
  absl::StatusOr<std::shared_ptr<CudaOps>> gpu =
      OpenGpu(static_cast<int>(place.local_rank / share));
  EK_RETURN_IF_ERROR(AgreeOnStatus(comm, gpu.status(), "GPU"));
  ThreadPool pool(ThreadsPerRank(options.threads, place.local_size));
  MemoryTracker tracker;
  const GpuFacts facts = FactsOf(**gpu);
  absl::StatusOr<Arena> arena = Arena::CreateOnGpu(DeviceOf(**gpu), facts.total_bytes, tracker);
  EK_RETURN_IF_ERROR(AgreeOnStatus(comm, arena.status(), "GPU memory"));
  start_clock.Lap("GPU");
  std::unique_ptr<GpuComm> gpu_comm;
  if (comm.size() > 1) {
    if constexpr (kWithCuda) {
      GpuCommOptions comm_options;
      comm_options.timeout_s = options.timeout_s;
      comm_options.shares_gpu = share > 1;
      EK_ASSIGN_OR_RETURN(gpu_comm, OpenGpuComm(comm, DeviceOf(**gpu), comm_options));
    }
    start_clock.Lap("NCCL");
  }
  const OpContext context{pool, *arena, options.dtype, gpu->get()};
  return body({context,
               comm,
               gpu_comm.get(),
               tracker,
               {facts.free_bytes, static_cast<int>(share), "GPU"},
               start_clock});
}

absl::Status RunBody(const RankOptions& options, Communicator& comm, const Place& place,
                     StartClock& start_clock, const Body& body) {
  InitLog(comm.rank(), /*quiet=*/comm.rank() != 0);
  return options.device == Device::kCpu ? RunOnCpu(options, comm, place, start_clock, body)
                                        : RunOnGpu(options, comm, place, start_clock, body);
}

}  // namespace

absl::Status RunOnRank(const RankOptions& options,
                       const std::function<absl::Status(const RankRuntime&)>& body) {
  StartClock start_clock;
  const GetEnvironment get = [](const char* name) -> const char* { return std::getenv(name); };
  if (!IsStartedByLauncher(get)) {
    if (options.many_ranks) EK_RETURN_IF_ERROR(CheckLaunch(/*world_size=*/1, get));
    return RunBody(options, *MakeSelfCommunicator(), Place(), start_clock, body);
  }
  EK_ASSIGN_OR_RETURN(MpiRuntime mpi, MpiRuntime::Create({options.timeout_s}));
  start_clock.Lap("MPI");
  absl::Status status;
  if (options.many_ranks) status = CheckLaunch(mpi.world().size(), get);
  if (status.ok()) {
    const Place place = {mpi.local_rank(), mpi.local_size()};
    status = RunBody(options, mpi.world(), place, start_clock, body);
  }
  // Before MPI ends: once a rank has left with an error, mpirun ends the others, and what they had
  // yet to say is lost.
  // kCancelled: all ranks have agreed to leave.
  const bool is_alone =
      !status.ok() && !absl::IsCancelled(status) && LeavesPeersWaiting(ExitCodeOf(status));
  status = is_alone || mpi.world().rank() == 0 ? ReportFailure(std::move(status))
                                               : MarkReported(std::move(status));
  // Nor does MPI end where Ctrl-C has mpirun end the job: it leaves its ranks waiting until it
  // kills them.
  if (!status.ok()) RecordExitCode(ExitCodeOf(status));
  if (is_alone && mpi.world().size() > 1) mpi.world().Abort(ExitCodeOf(status));
  return status;
}

}  // namespace evenkeel
