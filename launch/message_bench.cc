#include "launch/message_bench.h"

#include <algorithm>
#include <chrono>

#include "launch/noise.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/gpu_comm.h"
#include "runtime/ops/copy_rows.h"
#include "runtime/ops/gpu.h"

namespace evenkeel {
namespace {

constexpr int64_t kRowBytes = 1024;

// Median over the runs, after one to warm up, of the slowest rank's time. All begin together.
absl::StatusOr<double> SlowestSeconds(const RankRuntime& rank, const TimingOptions& timing,
                                      const std::function<absl::Status()>& body) {
  std::vector<double> times;
  for (int64_t run = 0; run <= timing.runs; ++run) {
    EK_RETURN_IF_ERROR(WaitForOps(rank.context));
    EK_RETURN_IF_ERROR(rank.comm.Barrier("bench messages"));
    const auto begin = std::chrono::steady_clock::now();
    EK_RETURN_IF_ERROR(body());
    EK_RETURN_IF_ERROR(WaitForOps(rank.context));
    double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    EK_RETURN_IF_ERROR(rank.comm.AllReduce(TensorView(&seconds, DType::kF64, {1}), ReduceOp::kMax,
                                           "time of the slowest rank"));
    if (run > 0) times.push_back(seconds);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

absl::StatusOr<MessagePoint> MeasureSize(const RankRuntime& rank, const TimingOptions& timing,
                                         int64_t bytes) {
  const OpContext& context = rank.context;
  Communicator& comm = rank.gpu_comm == nullptr ? rank.comm : rank.gpu_comm->world();
  const ArenaScope scope(context.arena);
  const int64_t columns = kRowBytes / SizeOf(context.dtype);
  const int64_t rows = std::max<int64_t>(1, bytes / kRowBytes);
  const auto allocate = [&] {
    return context.arena.Allocate(context.dtype, {rows, columns}, MemoryPurpose::kCommunication);
  };
  const TensorView from = allocate(), to = allocate();
  FillWithNoise(context, from);
  FillWithNoise(context, to);
  MessagePoint point;
  point.bytes = rows * kRowBytes;
  const SendTo send{(comm.rank() + 1) % comm.size(), from};
  const ReceiveFrom receive{(comm.rank() + comm.size() - 1) % comm.size(), to};
  EK_ASSIGN_OR_RETURN(point.message_s, SlowestSeconds(rank, timing, [&] {
                        return comm.SendRecv({&send, 1}, {&receive, 1}, "bench messages");
                      }));
  const std::vector<RowRange> all = {{.from = 0, .to = 0, .count = rows}};
  const RowRanges mirrored = Mirror(context, RowRanges(all));
  EK_ASSIGN_OR_RETURN(point.copy_s, SlowestSeconds(rank, timing, [&] {
                        CopyRowRanges(context, mirrored, from, to);
                        return absl::OkStatus();
                      }));
  return point;
}

}  // namespace

absl::StatusOr<std::vector<MessagePoint>> MeasureMessages(
    const RankRuntime& rank, const TimingOptions& timing, const std::vector<int64_t>& sizes,
    const std::function<void(const MessagePoint&)>& tell) {
  std::vector<MessagePoint> points;
  for (const int64_t bytes : sizes) {
    EK_ASSIGN_OR_RETURN(const MessagePoint point, MeasureSize(rank, timing, bytes));
    points.push_back(point);
    tell(point);
  }
  return points;
}

MessageLine LineThrough(const std::vector<MessagePoint>& points) {
  const MessagePoint &first = points.front(), &last = points.back();
  MessageLine line;
  const double rise = last.message_s - first.message_s;
  const auto run = static_cast<double>(last.bytes - first.bytes);
  line.bytes_per_second =
      run > 0 && rise > 0 ? run / rise : static_cast<double>(last.bytes) / last.message_s;
  line.latency_s =
      std::max(0.0, first.message_s - static_cast<double>(first.bytes) / line.bytes_per_second);
  line.copy_bytes_per_second = static_cast<double>(last.bytes) / last.copy_s;
  return line;
}

}  // namespace evenkeel
