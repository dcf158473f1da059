// One rank's process: its communicator, threads and memory.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "launch/start_clock.h"
#include "runtime/comm/communicator.h"
#include "runtime/comm/gpu_comm.h"
#include "runtime/ops/op_context.h"
#include "runtime/tensor/memory_tracker.h"

namespace evenkeel {

struct RankOptions {
  Device device = Device::kCpu;
  DType dtype = DType::kF32;  // on a GPU: bf16
  int64_t ranks_per_gpu = 1;  // more than one: for tests
  int64_t threads = 0;
  double timeout_s = 300;
  bool many_ranks = true;  // whether the subcommand is meant to run on several ranks
};

// What a rank may fill: a host's memory, or what is free on a GPU, shared by so many ranks.
struct MemoryBudget {
  int64_t bytes = 0;
  int sharers = 1;
  const char* owner = "host";  // or "GPU"
};

struct RankRuntime {
  const OpContext& context;
  Communicator& comm;  // all ranks, for tensors of the host
  GpuComm* gpu_comm;   // the same, for tensors on GPUs; null on the CPU, and for one rank alone
  MemoryTracker& tracker;
  MemoryBudget memory;
  StartClock& start_clock;  // of this process
};

// Starts MPI if mpirun started this process, runs `body`, reports its failure on the rank (or,
// where all ranks fail alike, once), and ends the job if peers could be left waiting. Returns what
// `body` returned.
absl::Status RunOnRank(const RankOptions& options,
                       const std::function<absl::Status(const RankRuntime&)>& body);

}  // namespace evenkeel
