// The calls of one communicator on the status board: how far its ranks on this host have come, for
// reports of time-outs and of calls that do not match. Internal to runtime/comm.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/comm/status_board.h"

namespace evenkeel {

// Equal for equal calls: the signature of a BoardCall.
uint64_t SignatureOf(const std::string& op, const std::string& label, const std::string& size);

// Post belongs to one thread; the rest is thread-safe.
class CallBoard {
 public:
  // `id` is the communicator's place on the board, the same on all its ranks; one that is not on it
  // (kMaxBoardCommunicators or more) knows nothing of its peers' calls. `local_rank_of[r]` is rank
  // r's place among the ranks of this host, -1 on another host. The board outlives this.
  CallBoard(StatusBoard& board, int id, int rank, std::vector<int> local_rank_of);

  // Notes that this rank makes collective call `call.sequence`.
  void Post(const BoardCall& call) { board_.Post(id_, call); }

  // Fails if a rank of this host makes another call in place of `call`, which is on `name`.
  absl::Status CheckMatch(const BoardCall& call, const std::string& name) const;

  // How the report of a time-out ends: who has not come to collective call `sequence`, or what
  // `peers` do if the call is not collective (sequence 0). ". It has not arrived: rank 3" and a
  // line for each of them.
  std::string DescribeAbsent(int64_t sequence, std::vector<int> peers = {}) const;

 private:
  bool is_on_board() const { return id_ < kMaxBoardCommunicators; }
  int LocalRankOf(int rank) const { return local_rank_of_[static_cast<size_t>(rank)]; }

  StatusBoard& board_;
  const int id_;
  const int rank_;
  const std::vector<int> local_rank_of_;
};

}  // namespace evenkeel
