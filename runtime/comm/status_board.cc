#include "runtime/comm/status_board.h"

#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <ctime>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace evenkeel {
namespace {

static_assert(std::atomic<int64_t>::is_always_lock_free, "the board is shared between processes");

bool IsOnBoard(int communicator) {
  return 0 <= communicator && communicator < kMaxBoardCommunicators;
}

// The state letter of /proc/PID/stat: R running, S sleeping, D in the disk, T stopped, Z zombie; or
// '-' if there is no such process.
char ProcessState(int pid) {
  const std::string path = absl::StrCat("/proc/", pid, "/stat");
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "r"), std::fclose);
  if (file == nullptr) return '-';
  char line[512] = {};
  if (std::fgets(line, sizeof(line), file.get()) == nullptr) return '-';
  // The name in brackets may itself hold brackets and blanks.
  const char* bracket = std::strrchr(line, ')');
  return bracket != nullptr && bracket[1] == ' ' ? bracket[2] : '?';
}

std::string Ago(int64_t time_ns) {
  return absl::StrFormat("%.1f s ago",
                         static_cast<double>(MonotonicNanoseconds() - time_ns) * 1e-9);
}

}  // namespace

int64_t MonotonicNanoseconds() {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000000000 + now.tv_nsec;
}

void SharedCall::Write(const BoardCall& call) {
  const uint32_t version = version_.load(std::memory_order_relaxed);
  version_.store(version + 1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  sequence_.store(call.sequence, std::memory_order_relaxed);
  step_.store(call.step, std::memory_order_relaxed);
  signature_.store(call.signature, std::memory_order_relaxed);
  time_ns_.store(call.time_ns, std::memory_order_relaxed);
  for (size_t i = 0; i < text_.size(); ++i) {
    uint64_t word = 0;
    if (const size_t at = i * sizeof(word); at < call.text.size()) {
      std::memcpy(&word, call.text.data() + at, std::min(sizeof(word), call.text.size() - at));
    }
    text_[i].store(word, std::memory_order_relaxed);
  }
  version_.store(version + 2, std::memory_order_release);
}

std::optional<BoardCall> SharedCall::Read() const {
  for (int attempt = 0; attempt < 1000; ++attempt) {
    const uint32_t version = version_.load(std::memory_order_acquire);
    if (version % 2 != 0) continue;
    BoardCall call;
    call.sequence = sequence_.load(std::memory_order_relaxed);
    call.step = step_.load(std::memory_order_relaxed);
    call.signature = signature_.load(std::memory_order_relaxed);
    call.time_ns = time_ns_.load(std::memory_order_relaxed);
    char text[kTextWords * sizeof(uint64_t) + 1] = {};
    for (size_t i = 0; i < text_.size(); ++i) {
      const uint64_t word = text_[i].load(std::memory_order_relaxed);
      std::memcpy(text + i * sizeof(word), &word, sizeof(word));
    }
    std::atomic_thread_fence(std::memory_order_acquire);
    if (version_.load(std::memory_order_relaxed) != version) continue;
    call.text = text;
    return call;
  }
  return std::nullopt;
}

StatusBoard::StatusBoard(std::vector<BoardRow*> rows, int mine)
    : rows_(std::move(rows)), mine_(mine) {
  row(mine_).pid.store(getpid());
}

void StatusBoard::Post(int communicator, const BoardCall& call) {
  if (!IsOnBoard(communicator)) return;
  auto& entry = row(mine_).communicators[static_cast<size_t>(communicator)];
  entry.history[static_cast<size_t>(call.sequence % kBoardHistory)].Write(call);
  // Sequentially consistent, as the load in Find: of two ranks that each post a call and then look
  // for the other's, at least one must see it, and never starts its transfer.
  entry.last_sequence.store(call.sequence, std::memory_order_seq_cst);
}

void StatusBoard::BeginWait(const BoardCall& call) {
  row(mine_).waiting_for.Write(call);
  row(mine_).is_waiting.store(1, std::memory_order_release);
}

void StatusBoard::EndWait() {
  row(mine_).is_waiting.store(0, std::memory_order_release);
}

std::optional<BoardCall> StatusBoard::Find(int local_rank, int communicator,
                                           int64_t sequence) const {
  if (!IsOnBoard(communicator)) return std::nullopt;
  const auto& entry = row(local_rank).communicators[static_cast<size_t>(communicator)];
  if (entry.last_sequence.load(std::memory_order_seq_cst) < sequence) return std::nullopt;
  auto call = entry.history[static_cast<size_t>(sequence % kBoardHistory)].Read();
  if (call.has_value() && call->sequence != sequence) return std::nullopt;
  return call;
}

int64_t StatusBoard::LastSequence(int local_rank, int communicator) const {
  if (!IsOnBoard(communicator)) return 0;
  return row(local_rank)
      .communicators[static_cast<size_t>(communicator)]
      .last_sequence.load(std::memory_order_acquire);
}

bool StatusBoard::IsDead(int local_rank) const {
  const char state = ProcessState(row(local_rank).pid.load());
  return state == 'T' || state == 't' || state == 'Z' || state == 'X' || state == '-';
}

std::string StatusBoard::Describe(int local_rank, int communicator) const {
  const int pid = row(local_rank).pid.load();
  const char state = ProcessState(pid);
  std::string text = absl::StrCat("pid ", pid, " is ",
                                  state == 'T' || state == 't'                   ? "stopped"
                                  : state == 'Z' || state == 'X' || state == '-' ? "gone"
                                  : state == 'D' ? "waiting for a disk or network file system"
                                  : state == 'R' ? "running"
                                                 : "sleeping");
  const int64_t sequence = LastSequence(local_rank, communicator);
  if (const auto last = Find(local_rank, communicator, sequence); last && sequence > 0) {
    absl::StrAppend(&text, "; its last call here was #", sequence, " ", last->text, " at step ",
                    last->step, ", ", Ago(last->time_ns));
  } else if (sequence == 0) {
    absl::StrAppend(&text, "; it has made no call here");
  }
  if (row(local_rank).is_waiting.load(std::memory_order_acquire) != 0) {
    if (const auto waiting = row(local_rank).waiting_for.Read()) {
      absl::StrAppend(&text, "; it waits in ", waiting->text, " since ", Ago(waiting->time_ns));
    }
  } else {
    absl::StrAppend(&text, "; it is not in a call");
  }
  return text;
}

}  // namespace evenkeel
