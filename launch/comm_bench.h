// Times what ranks do together: collectives and messages of many sizes, and copies beside them, on
// tensors of the device that runs compute on. Sizes, rates and what counts as moved are those of
// nccl-tests.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "launch/bench_measure.h"
#include "launch/rank_runtime.h"

namespace evenkeel {

enum class CommOp {
  kAllReduce,  // in place
  kAllGather,
  kReduceScatter,
  kAllToAll,        // one call
  kAllToAllRounds,  // the same messages in size - 1 calls, each to one rank and from one
  kSendRecv,        // to the next rank of a ring, from the one before
  kCopy,            // of rows within each rank, all ranks at once
};

// In the order of the enumeration.
const std::vector<CommOp>& AllCommOps();
// "all-reduce", "all-to-all-rounds"
const char* NameOf(CommOp op);

struct CommBenchOptions {
  std::vector<CommOp> ops;
  std::vector<int64_t> sizes;  // bytes
  TimingOptions timing;
};

// One line of nccl-tests' tables.
struct CommPoint {
  CommOp op = CommOp::kAllReduce;
  int64_t bytes = 0;     // of the larger of a rank's two buffers
  int64_t elements = 0;  // float32, of a rank's own part
  int calls = 0;         // of the communicator in one operation
  double seconds = 0;    // of the slowest rank, median over the runs
  int64_t wrong = 0;     // of the elements looked at on all ranks

  double algorithm_bandwidth() const { return static_cast<double>(bytes) / seconds; }
  // The same times what makes it comparable with a link: 2 (n - 1) / n for an all-reduce,
  // (n - 1) / n for the others, 1 for messages of a ring and copies.
  double bus_bandwidth(int ranks) const;
};

// What a description of a cluster says of its links and of copies (scheduler/cluster.h).
struct LinkCost {
  double latency_s = 0;
  double bytes_per_second = 0;
  double copy_bytes_per_second = 0;
};

// The line through the shortest and the longest of the messages, the rate of the longest copy;
// nothing if one of the two was not measured. `points`: by size, ascending.
std::optional<LinkCost> LinkCostOf(const std::vector<CommPoint>& points);

// Bytes of both buffers of the largest operation.
int64_t CommBenchMemory(const CommBenchOptions& options);

// Calls tell(point) after each, on every rank. Collective; needs at least two ranks.
absl::Status MeasureComm(const RankRuntime& rank, const CommBenchOptions& options,
                         const std::function<void(const CommPoint&)>& tell);

}  // namespace evenkeel
