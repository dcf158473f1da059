#include "runtime/comm/call_board.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/comm/rank_list.h"

namespace evenkeel {

uint64_t SignatureOf(const std::string& op, const std::string& label, const std::string& size) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (const char c : absl::StrCat(op, "\n", label, "\n", size)) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  }
  return hash;
}

CallBoard::CallBoard(StatusBoard& board, int id, int rank, std::vector<int> local_rank_of)
    : board_(board), id_(id), rank_(rank), local_rank_of_(std::move(local_rank_of)) {}

absl::Status CallBoard::CheckMatch(const BoardCall& call, const std::string& name) const {
  if (call.sequence == 0) return absl::OkStatus();
  for (int r = 0; r < static_cast<int>(local_rank_of_.size()); ++r) {
    if (r == rank_ || LocalRankOf(r) < 0) continue;
    const auto other = board_.Find(LocalRankOf(r), id_, call.sequence);
    if (!other.has_value() || other->signature == call.signature) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "ranks make different calls as number ", call.sequence, " on ", name, " at step ",
        call.step, ": rank ", rank_, " makes ", call.text, ", rank ", r, " makes ", other->text));
  }
  return absl::OkStatus();
}

std::string CallBoard::DescribeAbsent(int64_t sequence, std::vector<int> peers) const {
  std::string text;
  std::vector<int> missing, remote, suspects;
  if (sequence > 0) {
    peers.resize(local_rank_of_.size());
    std::iota(peers.begin(), peers.end(), 0);
  } else {
    absl::StrAppend(&text, "; peers: ", FormatRanks(peers));
  }
  for (const int r : peers) {
    const int local = LocalRankOf(r);
    if (r == rank_) continue;
    if (local < 0) {
      remote.push_back(r);
    } else if (sequence > 0 && is_on_board() && board_.LastSequence(local, id_) < sequence) {
      missing.push_back(r);
    } else if (sequence == 0 || !is_on_board() || board_.IsDead(local)) {
      suspects.push_back(r);
    }
  }
  if (!missing.empty()) {
    absl::StrAppend(&text,
                    missing.size() == 1 ? ". It has not arrived: " : ". They have not arrived: ",
                    FormatRanks(missing));
  } else if (sequence > 0 && remote.empty() && is_on_board()) {
    absl::StrAppend(&text, ". All ranks have arrived; the transfer itself does not end");
  }
  if (!remote.empty()) {
    absl::StrAppend(&text, ". Not known, on other hosts: ", FormatRanks(remote));
  }
  missing.insert(missing.end(), suspects.begin(), suspects.end());
  constexpr size_t kMaxDescribed = 8;
  for (size_t i = 0; i < std::min(missing.size(), kMaxDescribed); ++i) {
    absl::StrAppend(&text, "\n  rank ", missing[i], ": ",
                    board_.Describe(LocalRankOf(missing[i]), id_));
  }
  // Who is missing may wait, on another communicator, for a process that runs no more: that one is
  // the cause, and the first report is the only one sure to see it as it is.
  for (int local = 0; local < board_.num_rows(); ++local) {
    const bool is_here =
        std::find(local_rank_of_.begin(), local_rank_of_.end(), local) != local_rank_of_.end();
    if (is_here || !board_.IsDead(local)) continue;
    absl::StrAppend(&text, "\n  elsewhere on this host: ", board_.Describe(local, id_));
  }
  return text;
}

}  // namespace evenkeel
