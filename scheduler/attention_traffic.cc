#include "scheduler/attention_traffic.h"

#include <algorithm>
#include <cmath>

namespace evenkeel {
namespace {

double Pain(double relative) {
  const double square = relative * relative, fourth = square * square;
  return fourth * fourth;
}

}  // namespace

void CutShares(const PooledDocument& document, int64_t shard_tokens,
               absl::Span<const DocumentShare> shares, std::vector<int64_t>* ends) {
  ends->resize(shares.size());
  double total = 0;
  for (const DocumentShare& share : shares) total += share.seconds;
  // Queries before a cut at e see e (e + 1) / 2 pairs, less those before q_begin.
  const double before = CausalPairs(document.q_begin, document.q_begin);
  const double pairs_per_second =
      CausalPairs(document.length - document.q_begin, document.length) / total;
  const auto step = static_cast<double>(shard_tokens);
  double seconds = 0;
  int64_t last = document.q_begin;
  for (size_t i = 0; i < shares.size(); ++i) {
    seconds += shares[i].seconds;
    const double cut = std::sqrt(2 * (before + pairs_per_second * seconds) + 0.25) - 0.5;
    const int64_t end = static_cast<int64_t>(cut / step + 0.5) * shard_tokens;
    last = std::min(std::max(end, last), document.length);
    (*ends)[i] = last;
  }
  ends->back() = document.length;
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

void AttentionTraffic::Count(const SharedDocument& shared) {
  const PooledDocument& document = pool_.documents[static_cast<size_t>(shared.document)];
  CutShares(document, shard_tokens_, shared.shares, &ends_);
  // As if no server owned anything.
  int64_t begin = document.q_begin;
  size_t servers = 0;  // whose range is not empty; their ends move to the front of ends_
  for (size_t i = 0; i < shared.shares.size(); ++i) {
    const int64_t end = ends_[i];
    if (end == begin) continue;
    Rank& server = Touch(shared.shares[i].server);
    server.begin = begin;
    server.end = end;
    server.more_recv +=
        q_bytes_ * static_cast<double>(end - begin) + kv_bytes_ * static_cast<double>(end);
    ends_[servers++] = begin = end;
  }
  // Owners send their keys to every server whose range ends after them, and not to themselves.
  size_t first = 0;  // server that needs some of the piece's keys
  for (int32_t p = 0; p < document.num_pieces; ++p) {
    const DocumentPiece& piece = pool_.pieces[static_cast<size_t>(document.first_piece + p)];
    const int64_t piece_end = piece.begin + piece.length;
    while (first < servers && ends_[first] <= piece.begin) ++first;
    if (first == servers) break;
    int64_t keys = 0;
    size_t i = first;
    for (; i < servers && ends_[i] < piece_end; ++i) keys += ends_[i] - piece.begin;
    keys += static_cast<int64_t>(servers - i) * piece.length;
    Rank& owner = Touch(piece.owner);
    const int64_t own_keys = std::max<int64_t>(0, std::min(owner.end, piece_end) - piece.begin);
    const int64_t own_queries =
        std::max<int64_t>(0, std::min(owner.end, piece_end) - std::max(owner.begin, piece.begin));
    const int64_t queries =
        std::max<int64_t>(0, piece_end - std::max(piece.begin, document.q_begin));
    owner.more_recv -=
        q_bytes_ * static_cast<double>(own_queries) + kv_bytes_ * static_cast<double>(own_keys);
    owner.more_send += q_bytes_ * static_cast<double>(queries - own_queries) +
                       kv_bytes_ * static_cast<double>(keys - own_keys);
  }
  for (const DocumentShare& share : shared.shares) {
    Rank& server = ranks_[static_cast<size_t>(share.server)];
    server.begin = server.end = 0;
  }
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

void AttentionTraffic::SetScale() {
  send_scale_ = recv_scale_ = 1;
  for (const Rank& rank : ranks_) {
    send_scale_ = std::max(send_scale_, rank.send);
    recv_scale_ = std::max(recv_scale_, rank.recv);
  }
}

double AttentionTraffic::PainOf(const SharedDocument& first, const SharedDocument* second,
                                Bytes bytes) {
  Count(first);
  if (second != nullptr) Count(*second);
  if (bytes.bytes > 0) {
    Touch(bytes.from).more_send += bytes.bytes;
    Touch(bytes.to).more_recv += bytes.bytes;
  }
  double pain = 0;
  for (const int32_t index : touched_) {
    const Rank& rank = ranks_[static_cast<size_t>(index)];
    pain += Pain((rank.send + rank.more_send) / send_scale_) - Pain(rank.send / send_scale_) +
            Pain((rank.recv + rank.more_recv) / recv_scale_) - Pain(rank.recv / recv_scale_);
  }
  Reset();
  return pain;
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
