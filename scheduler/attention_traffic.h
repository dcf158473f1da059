// What documents shared among servers make every rank send and receive, kept up to date while
// shares move: the measure that the searches of PlanDisaggregation lower. Pure and deterministic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "scheduler/attention_pool.h"
#include "scheduler/attention_shares.h"

namespace evenkeel {

// The end of each share's range of queries, in order: cut where a shard may be cut, as near as that
// allows to the shares' seconds, in proportion to (query, key) pairs.
void CutShares(const PooledDocument& document, int64_t shard_tokens,
               absl::Span<const DocumentShare> shares, std::vector<int64_t>* ends);

// A rank that sends, or receives, much.
struct BusyRank {
  double bytes = 0;  // over the scale (SetScale)
  int32_t rank = 0;
  bool sends = false;
};

class AttentionTraffic {
 public:
  AttentionTraffic(const AttentionPool& pool, int64_t shard_tokens);

  // Takes a document's traffic in or out.
  void Add(const SharedDocument& document) { Change(document, 1); }
  void Remove(const SharedDocument& document) { Change(document, -1); }

  double send(int32_t rank) const { return ranks_[static_cast<size_t>(rank)].send; }
  double recv(int32_t rank) const { return ranks_[static_cast<size_t>(rank)].recv; }

  // Bytes to which the busiest ranks are compared: the most that any sends now and the most that
  // any receives, or the other one over `most_apart` (at least 1) where that is more.
  void SetScale(double most_apart);
  // How bad it would be to add the documents (`second` may be null) and the bytes: the sum over
  // ranks of the 16th powers of bytes sent and received, less what it is without them.
  struct Bytes {
    int32_t from = 0;
    int32_t to = 0;
    double bytes = 0;
  };
  double PainOf(const SharedDocument& first, const SharedDocument* second, Bytes bytes);
  double PainOf(const SharedDocument& first) { return PainOf(first, nullptr, {}); }
  // Likewise, to put documents in the place of others.
  double DifferenceOf(absl::Span<const SharedDocument* const> before,
                      absl::Span<const SharedDocument* const> after);
  // Ranks that send or receive at least `share` of what the busiest one does, by rank.
  void FindBusy(double share, std::vector<BusyRank>* busy) const;
  // Of the busiest link of the document's owners and servers.
  double HeatOf(const SharedDocument& document);

 private:
  struct Rank {
    double send = 0, recv = 0;            // bytes
    double more_send = 0, more_recv = 0;  // of the trial
    int64_t keys = 0;                     // that it needs of the document being counted
    bool touched = false;
  };

  // Queries of a server, up to `end`.
  struct Range {
    int32_t server = 0;
    int64_t end = 0;
  };

  // Adds a document's bytes to the trial, or takes them from it.
  void Count(const SharedDocument& document, double sign = 1);
  // How much worse the trial is than what there is.
  double PainOfTrial() const;
  void CountQueries(const PooledDocument& document, const SharedDocument& shared,
                    double token_bytes);
  void CountKeys(const PooledDocument& document, double token_bytes);
  void Change(const SharedDocument& document, double sign);
  Rank& Touch(int32_t rank);
  void Reset();

  const AttentionPool& pool_;
  const int64_t shard_tokens_;
  const double q_bytes_, kv_bytes_;  // a token
  double send_scale_ = 1, recv_scale_ = 1;
  std::vector<Rank> ranks_;
  std::vector<int32_t> touched_;
  std::vector<int64_t> ends_;
  std::vector<Range> ranges_;  // of the document being counted, ascending
};

}  // namespace evenkeel
