// What each rank of a host is doing, in memory that all of them share. A rank that hangs or is
// stopped cannot answer questions, but the others can still read what it last wrote: so a time-out
// can name who is missing and where they are.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace evenkeel {

// One call as a rank noted it down.
struct BoardCall {
  int64_t sequence = 0;  // number of the call on its communicator, from 1
  int64_t step = 0;
  uint64_t signature = 0;  // equal on all ranks that make the same call
  int64_t time_ns = 0;     // CLOCK_MONOTONIC, which the ranks of a host share
  std::string text;        // AllReduce "gradient bucket 3"; cut to fit
};

// A BoardCall that one process writes and others read at any time (a sequence lock: readers retry,
// the writer never waits).
class SharedCall {
 public:
  void Write(const BoardCall& call);
  // Fails if the writer was stopped in the middle of a write.
  std::optional<BoardCall> Read() const;

 private:
  static constexpr int kTextWords = 12;

  std::atomic<uint32_t> version_;  // odd while being written
  std::atomic<int64_t> sequence_;
  std::atomic<int64_t> step_;
  std::atomic<uint64_t> signature_;
  std::atomic<int64_t> time_ns_;
  std::array<std::atomic<uint64_t>, kTextWords> text_;
};

// Communicators beyond the first kMaxCommunicators of a run are not on the board: their time-outs
// cannot say who is missing.
constexpr int kMaxBoardCommunicators = 128;
constexpr int kBoardHistory = 16;  // calls a rank may be ahead and still be compared

// One rank's part, written by it alone. Lives in zeroed shared memory.
struct BoardRow {
  std::atomic<int32_t> pid;
  std::atomic<int32_t> is_waiting;  // inside a wait of `waiting_for`
  SharedCall waiting_for;
  struct PerCommunicator {
    std::atomic<int64_t> last_sequence;
    std::array<SharedCall, kBoardHistory> history;  // call s at s mod kBoardHistory
  };
  std::array<PerCommunicator, kMaxBoardCommunicators> communicators;
};

// The view of one rank on the rows of its host.
class StatusBoard {
 public:
  // `rows[r]` belongs to local rank r; `mine` is this rank's. The memory outlives the board.
  StatusBoard(std::vector<BoardRow*> rows, int mine);

  int num_rows() const { return static_cast<int>(rows_.size()); }

  // Notes that this rank makes call `call.sequence` on `communicator`.
  void Post(int communicator, const BoardCall& call);
  // Brackets a blocking wait. `call.text` says on which communicator.
  void BeginWait(const BoardCall& call);
  void EndWait();

  // Returns call `sequence` of a rank; none if it has not got there or is too far ahead.
  std::optional<BoardCall> Find(int local_rank, int communicator, int64_t sequence) const;
  // Returns the number of the last call that a rank has made on `communicator`; 0 if none.
  int64_t LastSequence(int local_rank, int communicator) const;

  // "pid 314 is stopped (state T); last call AllReduce "x" #12 at step 7, 301.2 s ago; waiting in
  // Broadcast "y" on dp"
  std::string Describe(int local_rank, int communicator) const;

  // Returns whether the process is stopped, a zombie or gone.
  bool IsDead(int local_rank) const;

 private:
  BoardRow& row(int local_rank) const { return *rows_[static_cast<size_t>(local_rank)]; }

  std::vector<BoardRow*> rows_;
  int mine_;
};

// CLOCK_MONOTONIC.
int64_t MonotonicNanoseconds();

}  // namespace evenkeel
