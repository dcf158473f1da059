#include "launch/comm_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "runtime/base/status_macros.h"
#include "runtime/ops/copy_rows.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/gpu.h"

namespace evenkeel {
namespace {

constexpr int64_t kColumns = 4;        // elements of a row: parts of ranks begin at 16 bytes
constexpr int64_t kPeriod = 1 << 16;   // rows after which the values of a buffer repeat
constexpr int64_t kChecked = 1 << 12;  // rows looked at where a rank's part begins and ends
constexpr double kMinRunSeconds = 5e-3;
constexpr const char* kLabel = "bench";

// What rank `rank` has in `row` of its buffer: small whole numbers, whose sums are exact.
float ValueOf(int rank, int64_t row, int64_t column) {
  return static_cast<float>((7 * (row % kPeriod) + 3 * column + 31 * rank) % 101 - 50);
}

// The two buffers of one operation and what it does with them.
class Operation {
 public:
  Operation(const RankRuntime& rank, CommOp op, int64_t bytes)
      : context_(rank.context),
        comm_(rank.gpu_comm == nullptr ? rank.comm : rank.gpu_comm->world()),
        op_(op),
        // Of a rank's own part.
        rows_(std::max<int64_t>(1, bytes / (Divisor() * kColumns * SizeOf(DType::kF32)))),
        all_rows_({{.from = 0, .to = 0, .count = rows_}}) {
    const bool sends_all = op != CommOp::kAllGather;
    const bool receives_all = op != CommOp::kReduceScatter;
    send_ = Allocate(sends_all ? rows_ * Divisor() : rows_);
    if (op == CommOp::kAllReduce) {
      recv_ = send_;
    } else {
      recv_ = Allocate(receives_all ? rows_ * Divisor() : rows_);
    }
    of_each_.assign(static_cast<size_t>(comm_.size()), rows_);
    if (op == CommOp::kCopy) copied_ = Mirror(context_, RowRanges(all_rows_));
  }

  int64_t bytes() const { return rows_ * Divisor() * kColumns * SizeOf(DType::kF32); }
  int64_t elements() const { return rows_ * kColumns; }
  int calls() const {
    return op_ == CommOp::kAllToAllRounds ? comm_.size() - 1 : op_ == CommOp::kCopy ? 0 : 1;
  }

  absl::Status Fill() const {
    SetZero(context_, recv_);
    const int64_t first = std::min(send_.dim(0), kPeriod);
    std::vector<float> host;
    for (int64_t row = 0; row < first; ++row) {
      for (int64_t column = 0; column < kColumns; ++column) {
        host.push_back(ValueOf(comm_.rank(), row, column));
      }
    }
    EK_RETURN_IF_ERROR(CopyFromHost(
        context_, TensorView(host.data(), DType::kF32, {first, kColumns}), send_.Rows(0, first)));
    for (int64_t rows = first; rows < send_.dim(0); rows *= 2) {
      const int64_t more = std::min(rows, send_.dim(0) - rows);
      Copy(context_, send_.Rows(0, more), send_.Rows(rows, rows + more));
    }
    return WaitForOps(context_);  // the host's copy goes
  }

  absl::Status Run() const {
    switch (op_) {
      case CommOp::kAllReduce:
        return comm_.AllReduce(send_, ReduceOp::kSum, kLabel);
      case CommOp::kAllGather:
        return comm_.AllGather(send_, recv_, of_each_, kLabel);
      case CommOp::kReduceScatter:
        return comm_.ReduceScatter(send_, recv_, of_each_, ReduceOp::kSum, kLabel);
      case CommOp::kAllToAll:
        return comm_.AllToAll(send_, of_each_, recv_, of_each_, kLabel);
      case CommOp::kAllToAllRounds:
        return RunRounds();
      case CommOp::kSendRecv:
        return comm_.SendRecv({{Neighbour(1), send_}}, {{Neighbour(-1), recv_}}, kLabel);
      case CommOp::kCopy:
        CopyRowRanges(context_, copied_, send_, recv_);
        return absl::OkStatus();
    }
    return absl::OkStatus();
  }

  // Of the rows at the beginning and the end of every part of the result, after Fill() and Run().
  absl::StatusOr<int64_t> CountWrong() const {
    int64_t wrong = 0;
    for (int64_t part = 0; part < recv_.dim(0) / rows_; ++part) {
      const int64_t count = std::min(rows_, kChecked);
      for (const int64_t first : {int64_t{0}, rows_ - count}) {
        std::vector<float> host(static_cast<size_t>(count * kColumns));
        EK_RETURN_IF_ERROR(
            CopyToHost(context_, recv_.Rows(part * rows_ + first, part * rows_ + first + count),
                       TensorView(host.data(), DType::kF32, {count, kColumns})));
        for (int64_t i = 0; i < count * kColumns; ++i) {
          const float want = Expected(static_cast<int>(part), first + i / kColumns, i % kColumns);
          if (host[static_cast<size_t>(i)] != want) ++wrong;
        }
      }
    }
    return wrong;
  }

 private:
  // Into how many parts the larger buffer is divided.
  int64_t Divisor() const {
    const bool is_whole =
        op_ == CommOp::kAllReduce || op_ == CommOp::kSendRecv || op_ == CommOp::kCopy;
    return is_whole ? 1 : comm_.size();
  }

  TensorView Allocate(int64_t rows) const {
    return context_.arena.Allocate(DType::kF32, {rows, kColumns}, MemoryPurpose::kCommunication);
  }

  int Neighbour(int distance) const {
    return (comm_.rank() + distance + comm_.size()) % comm_.size();
  }

  TensorView PartOf(const TensorView& x, int rank) const {
    return x.Rows(rank * rows_, (rank + 1) * rows_);
  }

  absl::Status RunRounds() const {
    const int me = comm_.rank();
    Copy(context_, PartOf(send_, me), PartOf(recv_, me));
    for (int distance = 1; distance < comm_.size(); ++distance) {
      const int to = Neighbour(distance), from = Neighbour(-distance);
      EK_RETURN_IF_ERROR(
          comm_.SendRecv({{to, PartOf(send_, to)}}, {{from, PartOf(recv_, from)}}, kLabel));
    }
    return absl::OkStatus();
  }

  // What belongs into `row` of the part of the result that is of rank `part`.
  float Expected(int part, int64_t row, int64_t column) const {
    const int me = comm_.rank();
    switch (op_) {
      case CommOp::kAllReduce:
        return SumOf(row, column);
      case CommOp::kReduceScatter:
        return SumOf(me * rows_ + row, column);
      case CommOp::kAllGather:
        return ValueOf(part, row, column);
      case CommOp::kAllToAll:
      case CommOp::kAllToAllRounds:
        return ValueOf(part, me * rows_ + row, column);
      case CommOp::kSendRecv:
        return ValueOf(Neighbour(-1), row, column);
      case CommOp::kCopy:
        return ValueOf(me, row, column);
    }
    return 0;
  }

  float SumOf(int64_t row, int64_t column) const {
    float sum = 0;
    for (int rank = 0; rank < comm_.size(); ++rank) sum += ValueOf(rank, row, column);
    return sum;
  }

  const OpContext& context_;
  Communicator& comm_;
  CommOp op_;
  int64_t rows_;
  std::vector<RowRange> all_rows_;
  RowRanges copied_;
  TensorView send_, recv_;
  std::vector<int64_t> of_each_;
};

// The time of `calls` operations one after the other on the slowest rank.
absl::StatusOr<double> TimeCalls(const RankRuntime& rank, const Operation& operation,
                                 int64_t calls) {
  EK_RETURN_IF_ERROR(WaitForOps(rank.context));
  EK_RETURN_IF_ERROR(rank.comm.Barrier("before a run"));
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < calls; ++i) EK_RETURN_IF_ERROR(operation.Run());
  EK_RETURN_IF_ERROR(WaitForOps(rank.context));
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  EK_RETURN_IF_ERROR(
      rank.comm.AllReduce(TensorView(&seconds, DType::kF64, {1}), ReduceOp::kMax, "time of a run"));
  return seconds;
}

absl::StatusOr<CommPoint> MeasurePoint(const RankRuntime& rank, CommOp op, int64_t bytes,
                                       const TimingOptions& timing) {
  const ArenaScope scope(rank.context.arena);
  const Operation operation(rank, op, bytes);
  CommPoint point;
  point.op = op;
  point.bytes = operation.bytes();
  point.elements = operation.elements();
  point.calls = operation.calls();
  EK_RETURN_IF_ERROR(operation.Fill());
  EK_RETURN_IF_ERROR(operation.Run());
  EK_RETURN_IF_ERROR(WaitForOps(rank.context));
  EK_ASSIGN_OR_RETURN(point.wrong, operation.CountWrong());
  EK_RETURN_IF_ERROR(rank.comm.AllReduce(TensorView(&point.wrong, DType::kI64, {1}), ReduceOp::kSum,
                                         "wrong elements"));
  // All ranks have the same times, so they make the same calls.
  EK_ASSIGN_OR_RETURN(const double first, TimeCalls(rank, operation, 1));
  const auto calls = static_cast<int64_t>(
      std::clamp(std::ceil(kMinRunSeconds / std::max(first, 1e-9)), 1.0, 1000.0));
  std::vector<double> seconds;
  double total = first;
  do {
    EK_ASSIGN_OR_RETURN(const double run, TimeCalls(rank, operation, calls));
    total += run;
    seconds.push_back(run / static_cast<double>(calls));
  } while (static_cast<int64_t>(seconds.size()) < timing.runs && total < timing.max_seconds);
  const auto middle = seconds.begin() + static_cast<int64_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  point.seconds = *middle;
  return point;
}

}  // namespace

const std::vector<CommOp>& AllCommOps() {
  static const auto& ops = *new std::vector<CommOp>{
      CommOp::kAllReduce,      CommOp::kAllGather, CommOp::kReduceScatter, CommOp::kAllToAll,
      CommOp::kAllToAllRounds, CommOp::kSendRecv,  CommOp::kCopy};
  return ops;
}

const char* NameOf(CommOp op) {
  static constexpr const char* kNames[] = {"all-reduce", "all-gather",        "reduce-scatter",
                                           "all-to-all", "all-to-all-rounds", "send-recv",
                                           "copy"};
  return kNames[static_cast<int>(op)];
}

double CommPoint::bus_bandwidth(int ranks) const {
  const double share = static_cast<double>(ranks - 1) / ranks;
  const bool is_whole = op == CommOp::kSendRecv || op == CommOp::kCopy;
  const double factor = op == CommOp::kAllReduce ? 2 * share : is_whole ? 1 : share;
  return algorithm_bandwidth() * factor;
}

std::optional<LinkCost> LinkCostOf(const std::vector<CommPoint>& points) {
  std::vector<CommPoint> messages, copies;
  for (const CommPoint& point : points) {
    if (point.op == CommOp::kSendRecv) messages.push_back(point);
    if (point.op == CommOp::kCopy) copies.push_back(point);
  }
  if (messages.empty() || copies.empty()) return std::nullopt;
  const CommPoint &first = messages.front(), &last = messages.back();
  LinkCost cost;
  const double rise = last.seconds - first.seconds;
  const auto run = static_cast<double>(last.bytes - first.bytes);
  cost.bytes_per_second = run > 0 && rise > 0 ? run / rise : last.algorithm_bandwidth();
  cost.latency_s =
      std::max(0.0, first.seconds - static_cast<double>(first.bytes) / cost.bytes_per_second);
  cost.copy_bytes_per_second = copies.back().algorithm_bandwidth();
  return cost;
}

int64_t CommBenchMemory(const CommBenchOptions& options) {
  return options.sizes.empty() ? 0
                               : 2 * *std::max_element(options.sizes.begin(), options.sizes.end());
}

absl::Status MeasureComm(const RankRuntime& rank, const CommBenchOptions& options,
                         const std::function<void(const CommPoint&)>& tell) {
  for (const CommOp op : options.ops) {
    for (const int64_t bytes : options.sizes) {
      EK_ASSIGN_OR_RETURN(const CommPoint point, MeasurePoint(rank, op, bytes, options.timing));
      tell(point);
    }
  }
  return absl::OkStatus();
}

}  // namespace evenkeel
