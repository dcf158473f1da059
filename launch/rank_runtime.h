// One rank's process: its communicator, threads and memory.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "runtime/comm/communicator.h"
#include "runtime/ops/op_context.h"
#include "runtime/tensor/memory_tracker.h"

namespace evenkeel {

struct RankOptions {
  DType dtype = DType::kF32;
  int64_t threads = 0;
  double timeout_s = 300;
  bool many_ranks = true;  // whether the subcommand is meant to run on several ranks
};

struct RankRuntime {
  const OpContext& context;
  Communicator& comm;
  MemoryTracker& tracker;
  int local_ranks;  // on this host
};

// Starts MPI if mpirun started this process, runs `body`, reports its failure on the rank (or,
// where all ranks fail alike, once), and ends the job if peers could be left waiting. Returns what
// `body` returned.
absl::Status RunOnRank(const RankOptions& options,
                       const std::function<absl::Status(const RankRuntime&)>& body);

}  // namespace evenkeel
