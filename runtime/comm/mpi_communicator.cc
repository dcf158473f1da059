#include "runtime/comm/mpi_communicator.h"

#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/mpi_work.h"
#include "runtime/comm/transfer_size.h"

namespace evenkeel {
namespace {

// MPI counts in int; larger transfers go in pieces.
constexpr int64_t kMaxPiece = int64_t{1} << 30;

MPI_Datatype ReducibleType(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return MPI_FLOAT;
    case DType::kF64:
      return MPI_DOUBLE;
    case DType::kI32:
      return MPI_INT32_T;
    case DType::kI64:
      return MPI_INT64_T;
    case DType::kBF16:
    case DType::kF8E4M3:
    case DType::kF8E5M2:
      break;
  }
  EK_CHECK(false) << NameOf(dtype) << " is not reduced on the host";
  return MPI_DATATYPE_NULL;
}

MPI_Op ToMpi(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
      return MPI_SUM;
    case ReduceOp::kMax:
      return MPI_MAX;
    case ReduceOp::kMin:
      return MPI_MIN;
  }
  return MPI_OP_NULL;
}

void CheckTensor(ConstTensorView view, const std::string& label) {
  EK_CHECK(view.device == Device::kCpu && view.is_dense() && view.rank() >= 1)
      << label << ": MPI moves dense host tensors, not " << view.shape.ToString();
}

// Where a tensor's elements are. One without any may lie where another begins, and Open MPI takes
// equal addresses of what is sent and received for MPI_IN_PLACE: it gets an address of its own.
template <typename View>
auto* AddressOf(const View& view) {
  static char nowhere[2];
  using Pointer = decltype(view.data);
  if (view.num_elements() > 0) return view.data;
  return static_cast<Pointer>(&nowhere[std::is_const_v<std::remove_pointer_t<Pointer>> ? 0 : 1]);
}

// Fills counts and offsets, in rows, as MPI wants them. Returns the total.
int64_t ToCounts(absl::Span<const int64_t> rows, std::vector<int>& counts,
                 std::vector<int>& offsets) {
  int64_t total = 0;
  for (const int64_t n : rows) {
    EK_CHECK(n >= 0 && total + n <= INT_MAX) << "rows " << total << " + " << n;
    counts.push_back(static_cast<int>(n));
    offsets.push_back(static_cast<int>(total));
    total += n;
  }
  return total;
}

}  // namespace

MpiCommunicator::MpiCommunicator(MPI_Comm comm, int rank, int size, int id, std::string name,
                                 std::shared_ptr<MpiContext> context)
    : Communicator(rank, size, std::move(name)),
      comm_(comm),
      context_(std::move(context)),
      board_(context_->board(), id, rank, LocalRanks()) {
  MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
}

MpiCommunicator::~MpiCommunicator() {
  if (!context_->is_broken && !context_->has_lost_ranks) MPI_Comm_free(&comm_);
}

int MpiCommunicator::WorldRankOf(int rank) const {
  return TranslateRank(comm_, rank, MPI_COMM_WORLD);
}

void MpiCommunicator::MarkBroken() {
  is_broken_ = true;
  context_->is_broken = true;
}

absl::StatusOr<MpiCall> MpiCommunicator::Begin(const std::string& op, const std::string& label,
                                               const std::string& size) {
  MpiCall call;
  call.text = absl::StrCat(op, " \"", label, "\" on ", name());
  call.size = size;
  if (is_broken_) {
    return absl::FailedPreconditionError(
        absl::StrCat(call.text, ": an earlier call on ", name(), " has failed"));
  }
  call.sequence = ++sequence_;
  call.signature = SignatureOf(op, label, size);
  const std::string shown =
      absl::StrCat(op, " \"", label, "\"", size.empty() ? "" : absl::StrCat(" (", size, ")"));
  board_.Post({call.sequence, context_->step, call.signature, MonotonicNanoseconds(), shown});
  if (absl::Status status = FindMismatch(call); !status.ok()) {
    MarkBroken();
    return status;
  }
  return call;
}

absl::Status MpiCommunicator::FindMismatch(const MpiCall& call) const {
  const std::string text =
      absl::StrCat(call.text, call.size.empty() ? "" : absl::StrCat(" (", call.size, ")"));
  return board_.CheckMatch({call.sequence, context_->step, call.signature, 0, text}, name());
}

std::string MpiCommunicator::DescribeTimeout(const MpiCall& call, double waited_s) const {
  std::string text = absl::StrFormat(
      "%s timed out after %.1f s on rank %d of %d (host %s, pid %d) at step %d", call.text,
      waited_s, rank(), size(), context_->host(), getpid(), context_->step);
  if (call.sequence > 0) absl::StrAppend(&text, ", call number ", call.sequence);
  if (!call.size.empty()) absl::StrAppend(&text, ", ", call.size);
  return absl::StrCat(text, board_.DescribeAbsent(call.sequence, call.peers));
}

Work MpiCommunicator::AllReduceAsync(TensorView data, ReduceOp op, const std::string& label) {
  CheckTensor(data, label);
  const MPI_Datatype type = ReducibleType(data.dtype);
  static constexpr const char* kNames[] = {"AllReduce", "AllReduceMax", "AllReduceMin"};
  auto call = Begin(kNames[static_cast<int>(op)], label, DescribeSize(data));
  if (!call.ok()) return Work(call.status());
  auto work = std::make_unique<MpiWork>(this, *std::move(call));
  const int64_t n = data.num_elements();
  for (int64_t begin = 0; begin < n; begin += kMaxPiece) {
    work->NoteError(MPI_Iallreduce(MPI_IN_PLACE,
                                   static_cast<char*>(data.data) + begin * SizeOf(data.dtype),
                                   static_cast<int>(std::min(kMaxPiece, n - begin)), type,
                                   ToMpi(op), comm_, work->AddRequest()));
  }
  return Work(std::move(work));
}

Work MpiCommunicator::BroadcastAsync(TensorView data, int root, const std::string& label) {
  CheckTensor(data, label);
  EK_CHECK(0 <= root && root < size()) << label << ": root " << root << " of " << size();
  auto call = Begin("Broadcast", label, absl::StrCat(DescribeSize(data), " from rank ", root));
  if (!call.ok()) return Work(call.status());
  auto work = std::make_unique<MpiWork>(this, *std::move(call));
  const int64_t n = BytesOf(data);
  for (int64_t begin = 0; begin < n; begin += kMaxPiece) {
    work->NoteError(MPI_Ibcast(static_cast<char*>(data.data) + begin,
                               static_cast<int>(std::min(kMaxPiece, n - begin)), MPI_BYTE, root,
                               comm_, work->AddRequest()));
  }
  return Work(std::move(work));
}

Work MpiCommunicator::AllGatherAsync(ConstTensorView mine, TensorView all,
                                     absl::Span<const int64_t> rows, const std::string& label) {
  CheckTensor(mine, label);
  CheckTensor(all, label);
  auto call = Begin("AllGather", label, DescribeSize(all));
  if (!call.ok()) return Work(call.status());
  auto work = std::make_unique<MpiWork>(this, *std::move(call));
  std::vector<int> counts, offsets;
  const int64_t total = ToCounts(rows, counts, offsets);
  const auto me = static_cast<size_t>(rank());
  EK_CHECK(rows.size() == static_cast<size_t>(size()) && mine.dim(0) == rows[me] &&
           all.dim(0) == total && RowBytes(mine) == RowBytes(all))
      << label << ": " << mine.shape.ToString() << " into " << all.shape.ToString();
  const int64_t row_bytes = RowBytes(all);
  if (row_bytes == 0 || total == 0) return Work(std::move(work));
  const bool is_in_place = mine.num_elements() > 0 &&
                           mine.data == static_cast<char*>(all.data) + offsets[me] * row_bytes;
  const MPI_Datatype type = work->AddRowType(row_bytes);
  const int* kept_counts = work->AddCounts(counts);
  const int* kept_offsets = work->AddCounts(offsets);
  work->NoteError(MPI_Iallgatherv(is_in_place ? MPI_IN_PLACE : AddressOf(mine), counts[me], type,
                                  AddressOf(all), kept_counts, kept_offsets, type, comm_,
                                  work->AddRequest()));
  return Work(std::move(work));
}

Work MpiCommunicator::ReduceScatterAsync(ConstTensorView all, TensorView mine,
                                         absl::Span<const int64_t> rows, ReduceOp op,
                                         const std::string& label) {
  CheckTensor(all, label);
  CheckTensor(mine, label);
  const MPI_Datatype type = ReducibleType(all.dtype);
  auto call = Begin("ReduceScatter", label, DescribeSize(all));
  if (!call.ok()) return Work(call.status());
  auto work = std::make_unique<MpiWork>(this, *std::move(call));
  const int64_t row_elements = RowBytes(all) / SizeOf(all.dtype);
  std::vector<int64_t> elements(rows.begin(), rows.end());
  for (int64_t& n : elements) n *= row_elements;
  std::vector<int> counts, offsets;
  const int64_t total = ToCounts(elements, counts, offsets);
  EK_CHECK(rows.size() == static_cast<size_t>(size()) && all.dtype == mine.dtype &&
           mine.num_elements() == elements[static_cast<size_t>(rank())] &&
           all.num_elements() == total)
      << label << ": " << all.shape.ToString() << " into " << mine.shape.ToString();
  if (total == 0) return Work(std::move(work));
  const int* kept_counts = work->AddCounts(counts);
  work->NoteError(MPI_Ireduce_scatter(AddressOf(all), AddressOf(mine), kept_counts, type, ToMpi(op),
                                      comm_, work->AddRequest()));
  return Work(std::move(work));
}

Work MpiCommunicator::AllToAllAsync(ConstTensorView send, absl::Span<const int64_t> send_rows,
                                    TensorView recv, absl::Span<const int64_t> recv_rows,
                                    const std::string& label) {
  CheckTensor(send, label);
  CheckTensor(recv, label);
  const int64_t row_bytes = RowBytes(recv);
  auto call = Begin("AllToAll", label, absl::StrCat("rows of ", row_bytes, " bytes"));
  if (!call.ok()) return Work(call.status());
  auto work = std::make_unique<MpiWork>(this, *std::move(call));
  std::vector<int> send_counts, send_offsets, recv_counts, recv_offsets;
  const int64_t num_sent = ToCounts(send_rows, send_counts, send_offsets);
  const int64_t num_received = ToCounts(recv_rows, recv_counts, recv_offsets);
  const auto n = static_cast<size_t>(size());
  EK_CHECK(send_rows.size() == n && recv_rows.size() == n && send.dim(0) == num_sent &&
           recv.dim(0) == num_received && RowBytes(send) == row_bytes)
      << label << ": " << send.shape.ToString() << " to " << recv.shape.ToString();
  if (row_bytes == 0) return Work(std::move(work));
  const MPI_Datatype type = work->AddRowType(row_bytes);
  const int* sc = work->AddCounts(send_counts);
  const int* so = work->AddCounts(send_offsets);
  const int* rc = work->AddCounts(recv_counts);
  const int* ro = work->AddCounts(recv_offsets);
  work->NoteError(MPI_Ialltoallv(AddressOf(send), sc, so, type, AddressOf(recv), rc, ro, type,
                                 comm_, work->AddRequest()));
  return Work(std::move(work));
}

Work MpiCommunicator::SendRecvAsync(absl::Span<const SendTo> sends,
                                    absl::Span<const ReceiveFrom> receives,
                                    const std::string& label) {
  MpiCall call;
  call.text = absl::StrCat("SendRecv \"", label, "\" on ", name());
  call.size = absl::StrCat(sends.size(), " sends, ", receives.size(), " receives");
  if (is_broken_) {
    return Work(absl::FailedPreconditionError(
        absl::StrCat(call.text, ": an earlier call on ", name(), " has failed")));
  }
  if (is_interrupted()) return Work(MpiWork::Interrupted(call));
  for (const SendTo& send : sends) call.peers.push_back(send.peer);
  for (const ReceiveFrom& receive : receives) call.peers.push_back(receive.peer);
  std::sort(call.peers.begin(), call.peers.end());
  call.peers.erase(std::unique(call.peers.begin(), call.peers.end()), call.peers.end());
  auto work = std::make_unique<MpiWork>(this, std::move(call));
  for (const ReceiveFrom& receive : receives) {
    CheckTensor(receive.data, label);
    const int64_t bytes = BytesOf(receive.data);
    int64_t begin = 0;
    do {  // an empty message is one message
      const int64_t piece = std::min(kMaxPiece, bytes - begin);
      work->NoteError(MPI_Irecv(static_cast<char*>(receive.data.data) + begin,
                                static_cast<int>(piece), MPI_BYTE, receive.peer, 0, comm_,
                                work->AddReceive(receive.peer, piece)));
      begin += piece;
    } while (begin < bytes);
  }
  for (const SendTo& send : sends) {
    CheckTensor(send.data, label);
    const int64_t bytes = BytesOf(send.data);
    int64_t begin = 0;
    do {
      const int64_t piece = std::min(kMaxPiece, bytes - begin);
      work->NoteError(MPI_Isend(static_cast<const char*>(send.data.data) + begin,
                                static_cast<int>(piece), MPI_BYTE, send.peer, 0, comm_,
                                work->AddRequest()));
      begin += piece;
    } while (begin < bytes);
  }
  return Work(std::move(work));
}

Work MpiCommunicator::BarrierAsync(const std::string& label) {
  auto call = Begin("Barrier", label, "");
  if (!call.ok()) return Work(call.status());
  auto work = std::make_unique<MpiWork>(this, *std::move(call));
  work->NoteError(MPI_Ibarrier(comm_, work->AddRequest()));
  return Work(std::move(work));
}

absl::StatusOr<std::unique_ptr<Communicator>> MpiCommunicator::Split(int color, int key,
                                                                     const std::string& name) {
  // Also makes sure, with a time-out, that all ranks are here: MPI_Comm_split has none.
  EK_ASSIGN_OR_RETURN(const int id, NextBoardId("split"));
  MPI_Comm part = MPI_COMM_NULL;
  EK_RETURN_IF_ERROR(ToStatus(MPI_Comm_split(comm_, color < 0 ? MPI_UNDEFINED : color, key, &part),
                              "MPI_Comm_split"));
  std::unique_ptr<Communicator> result;
  if (part == MPI_COMM_NULL) return result;
  int part_rank = 0, part_size = 0;
  MPI_Comm_rank(part, &part_rank);
  MPI_Comm_size(part, &part_size);
  result = std::make_unique<MpiCommunicator>(part, part_rank, part_size, id, name, context_);
  return result;
}

absl::StatusOr<std::unique_ptr<Communicator>> MpiCommunicator::MakeGroup(
    absl::Span<const int> ranks, const std::string& name) {
  MPI_Group all = MPI_GROUP_NULL, group = MPI_GROUP_NULL;
  MPI_Comm_group(comm_, &all);
  MPI_Group_incl(all, static_cast<int>(ranks.size()), ranks.data(), &group);
  MPI_Comm part = MPI_COMM_NULL;
  // Among the ranks of the group alone; the tag is that of no other such call at the same time.
  const absl::Status status =
      ToStatus(MPI_Comm_create_group(comm_, group, ranks[0], &part), "MPI_Comm_create_group");
  MPI_Group_free(&all);
  MPI_Group_free(&group);
  EK_RETURN_IF_ERROR(status);
  std::vector<int> world_ranks;
  for (const int rank : ranks) world_ranks.push_back(WorldRankOf(rank));
  EK_RETURN_IF_ERROR(context_->AwaitInterrupted(world_ranks));
  int part_rank = 0, part_size = 0;
  MPI_Comm_rank(part, &part_rank);
  MPI_Comm_size(part, &part_size);
  // Its ranks need not have made equally many communicators: it has no place on the status board.
  auto result = std::make_unique<MpiCommunicator>(part, part_rank, part_size,
                                                  kMaxBoardCommunicators, name, context_);
  // Until all have received what they wait for above, all must be in MPI for it to arrive.
  EK_RETURN_IF_ERROR(result->Barrier("making a group"));
  return result;
}

absl::StatusOr<std::unique_ptr<CallBoard>> MpiCommunicator::MakeCallBoard() {
  EK_ASSIGN_OR_RETURN(const int id, NextBoardId("status board"));
  return std::make_unique<CallBoard>(context_->board(), id, rank(), LocalRanks());
}

std::vector<int> MpiCommunicator::LocalRanks() const {
  std::vector<int> local_ranks;
  for (int r = 0; r < size(); ++r) local_ranks.push_back(context_->LocalRankOf(comm_, r));
  return local_ranks;
}

absl::StatusOr<int> MpiCommunicator::NextBoardId(const std::string& label) {
  int64_t id = context_->next_communicator;
  EK_RETURN_IF_ERROR(AllReduce(TensorView(&id, DType::kI64, {1}), ReduceOp::kMax, label));
  context_->next_communicator = id + 1;
  return static_cast<int>(id);
}

void MpiCommunicator::Abort(ExitCode code) {
  MPI_Abort(MPI_COMM_WORLD, static_cast<int>(code));
  std::_Exit(static_cast<int>(code));
}

}  // namespace evenkeel
