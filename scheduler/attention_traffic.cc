#include "scheduler/attention_traffic.h"

#include <algorithm>
#include <cmath>

namespace evenkeel {
namespace {

double Pain(double relative) {
  const double square = relative * relative, fourth = square * square, eighth = fourth * fourth;
  return eighth * eighth;
}

}  // namespace

void CutShares(const PooledDocument& document, int64_t shard_tokens,
               absl::Span<const DocumentShare> shares, std::vector<int64_t>* ends) {
  ends->resize(shares.size());
  ends->back() = document.length;
  if (shares.size() == 1) return;
  double total = 0;
  for (const DocumentShare& share : shares) total += share.seconds;
  // Queries before a cut at e see e (e + 1) / 2 pairs, less those before q_begin.
  const double before = CausalPairs(document.q_begin, document.q_begin);
  const double pairs_per_second =
      CausalPairs(document.length - document.q_begin, document.length) / total;
  const double shards_per_token = 1 / static_cast<double>(shard_tokens);
  double seconds = 0;
  int64_t last = document.q_begin;
  for (size_t i = 0; i + 1 < shares.size(); ++i) {
    seconds += shares[i].seconds;
    const double cut = std::sqrt(2 * (before + pairs_per_second * seconds) + 0.25) - 0.5;
    const int64_t end = static_cast<int64_t>(cut * shards_per_token + 0.5) * shard_tokens;
    last = std::min(std::max(end, last), document.length);
    (*ends)[i] = last;
  }
}

AttentionTraffic::AttentionTraffic(const AttentionPool& pool, int64_t shard_tokens)
    : pool_(pool),
      shard_tokens_(shard_tokens),
      q_bytes_(static_cast<double>(pool.bytes.q)),
      kv_bytes_(static_cast<double>(pool.bytes.kv)),
      ranks_(static_cast<size_t>(pool.num_ranks)) {}

AttentionTraffic::Rank& AttentionTraffic::Touch(int32_t rank) {
  Rank& found = ranks_[static_cast<size_t>(rank)];
  if (!found.touched) {
    found.touched = true;
    touched_.push_back(rank);
  }
  return found;
}

void AttentionTraffic::Count(const SharedDocument& shared, double sign) {
  const PooledDocument& document = pool_.documents[static_cast<size_t>(shared.document)];
  CutShares(document, shard_tokens_, shared.shares, &ends_);
  CountQueries(document, shared, sign * q_bytes_);
  CountKeys(document, sign * kv_bytes_);
}

// Also lists the ranges that are not empty.
void AttentionTraffic::CountQueries(const PooledDocument& document, const SharedDocument& shared,
                                    double token_bytes) {
  const DocumentPiece* piece = &pool_.pieces[static_cast<size_t>(document.first_piece)];
  ranges_.clear();
  int64_t begin = document.q_begin;
  for (size_t i = 0; i < shared.shares.size(); ++i) {
    const int64_t end = ends_[i];
    if (begin == end) continue;
    const int32_t server = shared.shares[i].server;
    ranges_.push_back({server, end});
    while (begin < end) {
      while (piece->begin + piece->length <= begin) ++piece;
      const int64_t next = std::min(end, piece->begin + piece->length);
      if (piece->owner != server) {
        const double bytes = token_bytes * static_cast<double>(next - begin);
        Touch(server).more_recv += bytes;
        Touch(piece->owner).more_send += bytes;
      }
      begin = next;
    }
  }
}

// A server receives all keys up to its last query, less its own; an owner sends its keys to every
// server whose last query is after them, less itself.
void AttentionTraffic::CountKeys(const PooledDocument& document, double token_bytes) {
  ends_.clear();  // of each server, descending
  for (size_t i = ranges_.size(); i-- > 0;) {
    Rank& server = Touch(ranges_[i].server);
    if (server.keys > 0) continue;
    server.keys = ranges_[i].end;
    server.more_recv += token_bytes * static_cast<double>(server.keys);
    ends_.push_back(server.keys);
  }
  size_t whole = 0;  // servers that need all of the piece
  for (int32_t p = document.num_pieces; p-- > 0;) {
    const DocumentPiece& piece = pool_.pieces[static_cast<size_t>(document.first_piece + p)];
    while (whole < ends_.size() && ends_[whole] >= piece.begin + piece.length) ++whole;
    int64_t keys = static_cast<int64_t>(whole) * piece.length;
    for (; whole < ends_.size() && ends_[whole] > piece.begin; ++whole) {
      keys += ends_[whole] - piece.begin;
    }
    Rank& owner = Touch(piece.owner);
    const int64_t own = std::clamp<int64_t>(owner.keys - piece.begin, 0, piece.length);
    owner.more_send += token_bytes * static_cast<double>(keys - own);
    owner.more_recv -= token_bytes * static_cast<double>(own);
  }
  for (const Range& range : ranges_) ranks_[static_cast<size_t>(range.server)].keys = 0;
}

void AttentionTraffic::Reset() {
  for (const int32_t rank : touched_) {
    Rank& found = ranks_[static_cast<size_t>(rank)];
    found.more_send = found.more_recv = 0;
    found.touched = false;
  }
  touched_.clear();
}

void AttentionTraffic::Change(const SharedDocument& document, double sign) {
  Count(document);
  for (const int32_t rank : touched_) {
    Rank& found = ranks_[static_cast<size_t>(rank)];
    found.send += sign * found.more_send;
    found.recv += sign * found.more_recv;
  }
  Reset();
}

void AttentionTraffic::SetScale(double most_apart) {
  double send = 1, recv = 1;
  for (const Rank& rank : ranks_) {
    send = std::max(send, rank.send);
    recv = std::max(recv, rank.recv);
  }
  send_scale_ = std::max(send, recv / most_apart);
  recv_scale_ = std::max(recv, send / most_apart);
}

double AttentionTraffic::PainOf(const SharedDocument& first, const SharedDocument* second,
                                Bytes bytes) {
  Count(first);
  if (second != nullptr) Count(*second);
  if (bytes.bytes > 0) {
    Touch(bytes.from).more_send += bytes.bytes;
    Touch(bytes.to).more_recv += bytes.bytes;
  }
  const double pain = PainOfTrial();
  Reset();
  return pain;
}

double AttentionTraffic::DifferenceOf(absl::Span<const SharedDocument* const> before,
                                      absl::Span<const SharedDocument* const> after) {
  for (const SharedDocument* document : before) Count(*document, -1);
  for (const SharedDocument* document : after) Count(*document, 1);
  const double pain = PainOfTrial();
  Reset();
  return pain;
}

double AttentionTraffic::PainOfTrial() const {
  const double per_send = 1 / send_scale_, per_recv = 1 / recv_scale_;
  double pain = 0;
  for (const int32_t index : touched_) {
    const Rank& rank = ranks_[static_cast<size_t>(index)];
    pain += Pain((rank.send + rank.more_send) * per_send) - Pain(rank.send * per_send) +
            Pain((rank.recv + rank.more_recv) * per_recv) - Pain(rank.recv * per_recv);
  }
  return pain;
}

void AttentionTraffic::FindBusy(double share, std::vector<BusyRank>* busy) const {
  busy->clear();
  double most = 0;
  for (size_t r = 0; r < ranks_.size(); ++r) {
    const double send = ranks_[r].send / send_scale_, recv = ranks_[r].recv / recv_scale_;
    busy->push_back({send, static_cast<int32_t>(r), true});
    busy->push_back({recv, static_cast<int32_t>(r), false});
    most = std::max({most, send, recv});
  }
  const auto is_idle = [&](const BusyRank& rank) {
    return rank.bytes <= 0 || rank.bytes < share * most;
  };
  busy->erase(std::remove_if(busy->begin(), busy->end(), is_idle), busy->end());
}

double AttentionTraffic::HeatOf(const SharedDocument& document) {
  Count(document);
  double heat = 0;
  for (const int32_t index : touched_) {
    const Rank& rank = ranks_[static_cast<size_t>(index)];
    if (rank.more_send > 0) heat = std::max(heat, rank.send / send_scale_);
    if (rank.more_recv > 0) heat = std::max(heat, rank.recv / recv_scale_);
  }
  Reset();
  return heat;
}

}  // namespace evenkeel
