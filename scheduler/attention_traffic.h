// What documents shared among servers make every rank send and receive, kept up to date while
// shares move: the measure that the search of PlanDisaggregation lowers. Pure and deterministic.
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

class AttentionTraffic {
 public:
  AttentionTraffic(const AttentionPool& pool, int64_t shard_tokens);

  // Takes a document's traffic in or out.
  void Add(const SharedDocument& document) { Change(document, 1); }
  void Remove(const SharedDocument& document) { Change(document, -1); }

  double send(int32_t rank) const { return ranks_[static_cast<size_t>(rank)].send; }
  double recv(int32_t rank) const { return ranks_[static_cast<size_t>(rank)].recv; }

  // Bytes to which the busiest ranks are compared: the most that any sends and receives now.
  void SetScale();
  // How bad it would be to add the documents (`second` may be null) and the bytes: the sum over
  // ranks of the eighth powers of bytes sent and received, less what it is without them.
  struct Bytes {
    int32_t from = 0;
    int32_t to = 0;
    double bytes = 0;
  };
  double PainOf(const SharedDocument& first, const SharedDocument* second, Bytes bytes);
  double PainOf(const SharedDocument& first) { return PainOf(first, nullptr, {}); }
  // Of the busiest link of the document's owners and servers.
  double HeatOf(const SharedDocument& document);

 private:
  struct Rank {
    double send = 0, recv = 0;            // bytes
    double more_send = 0, more_recv = 0;  // of the trial
    int64_t begin = 0, end = 0;           // its range of the document being counted
    bool touched = false;
  };

  // Adds a document's bytes to the trial.
  void Count(const SharedDocument& document);
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
};

}  // namespace evenkeel
