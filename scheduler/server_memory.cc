#include "scheduler/server_memory.h"

#include <algorithm>

#include "parallel/sequence_layout.h"
#include "scheduler/core_memory.h"

namespace evenkeel {
namespace {

// Servers that share a document no longer than a server's mean share of the queries, at most. More
// do only where a batch has less than an eighth of the work it would have if all its documents were
// as long.
constexpr int64_t kMostServersOfDocument = 8;
// Queries of a dedicated server over the mean: loads are even, queries are not.
constexpr double kMostQueriesOverMean = 3;
// Documents of which a server has late queries, and holds all keys before them.
constexpr int64_t kPrefixes = 2;
// Queries are cut at multiples of shards, at both ends.
constexpr int64_t kShardsOfRounding = 2;

int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// What ranks send and hold in one nano-batch, at most.
class NanoBound {
 public:
  NanoBound(const RankLayout& layout, const MicroBatchTokens& tokens, bool is_first)
      : layout_(layout),
        tokens_(tokens),
        all_(RowsOf(tokens.all, is_first)),
        mine_(RowsOf(tokens.mine(layout), is_first)),
        servers_(layout.num_servers()),
        micro_batches_(int64_t{1} * layout.mesh.pp * layout.mesh.dp),
        serves_in_place_(layout.num_dedicated == 0) {}

  // Of an owner that has more work than the mean: its queries are on their way or held here.
  ServerRows Giving() const {
    const int64_t mean = CeilDiv(micro_batches_ * tokens_.all, servers_);
    const int64_t sharers = std::min(
        servers_, kMostServersOfDocument * std::max<int64_t>(1, CeilDiv(tokens_.longest, mean)));
    ServerRows rows;
    rows.sent_queries = mine_.count;
    rows.sent_keys = mine_.up_to * (serves_in_place_ ? sharers - 1 : sharers);
    rows.held_keys = rows.kept_keys = serves_in_place_ ? mine_.up_to : 0;
    return rows;
  }

  // Of an owner that has less work than the mean, beside its own rows. Others give up what has the
  // most work a query, and keep as much work as is received here in no more queries than the mean:
  // so what is received has no more queries either.
  ServerRows Taking() const {
    ServerRows rows = Holding(mine_.count, mine_.up_to, 1);
    rows.kept_keys = mine_.up_to;
    return rows;
  }

  // Of a dedicated server. Documents that the middle of a micro-batch cuts, one of each, come with
  // all keys before it.
  ServerRows Serving() const {
    const int64_t before = std::min(tokens_.longest, all_.up_to - all_.count);
    return Holding(0, CeilDiv(micro_batches_, servers_) * before, kMostQueriesOverMean);
  }

 private:
  struct Rows {
    int64_t count = 0;
    int64_t up_to = 0;  // its end, from the beginning of the micro-batch
  };

  Rows RowsOf(int64_t tokens, bool is_first) const {
    const bool is_halved = layout_.context.split == SequenceSplit::kHalves;
    const int64_t first = is_halved ? FirstHalf(tokens) : tokens;
    return is_first ? Rows{first, first} : Rows{tokens - first, tokens};
  }

  // So many rows, and what comes from others.
  ServerRows Holding(int64_t queries, int64_t keys, double over_mean) const {
    const auto mean = static_cast<double>(CeilDiv(micro_batches_ * all_.count, servers_));
    const auto& [tolerance, shard_tokens] = layout_.disaggregation;
    const int64_t received =
        static_cast<int64_t>(over_mean * (1 + tolerance) * mean) + kShardsOfRounding * shard_tokens;
    const int64_t prefixes = kPrefixes * std::min(tokens_.longest, all_.up_to);
    ServerRows rows;
    rows.held_queries = std::min(micro_batches_ * all_.count, queries + received);
    rows.held_keys = std::min(micro_batches_ * all_.up_to, keys + received + prefixes);
    return rows;
  }

  const RankLayout& layout_;
  const MicroBatchTokens& tokens_;
  Rows all_, mine_;  // of the micro-batch, and of this rank
  int64_t servers_;
  int64_t micro_batches_;  // of all stages and replicas, at a time
  bool serves_in_place_;
};

}  // namespace

int64_t ServerRowBytes(const LayerShape& layer, const ServerRows& rows,
                       const ComputeShape& compute) {
  const int64_t element = compute.element_bytes, wide = compute.wide_bytes;
  // q, out, dout and dq; lse.
  const int64_t query =
      2 * (layer.num_heads * layer.qk_size + layer.out_width) * element + layer.num_heads * wide;
  // Gradients lie where they are computed, and once more where they come back to.
  const int64_t keys = layer.kv_width() * element, gradients = layer.kv_width() * wide;
  return (rows.sent_queries + rows.held_queries) * query +
         (rows.sent_keys + rows.held_keys) * (keys + gradients) + rows.kept_keys * gradients;
}

int64_t ServerBufferBytes(const LayerShape& layer, const RankLayout& layout,
                          const MicroBatchTokens& tokens, const ComputeShape& compute,
                          PoolRole role) {
  const auto bytes_of = [&](const ServerRows& rows) {
    return ServerRowBytes(layer, rows, compute);
  };
  const bool is_mesh = role == PoolRole::kMesh;
  int64_t bytes = 0, queries = is_mesh ? tokens.mine(layout) : 0;  // of a call of the kernel
  for (const bool is_first : {true, false}) {
    if (!is_first && layout.context.split != SequenceSplit::kHalves) continue;
    const NanoBound bound(layout, tokens, is_first);
    const ServerRows giving = bound.Giving();
    const ServerRows holding = is_mesh ? bound.Taking() : bound.Serving();
    if (is_mesh && layout.num_dedicated > 0) {
      bytes += bytes_of(giving);
      continue;
    }
    queries = std::max(queries, holding.held_queries);
    if (!is_mesh) {
      bytes += bytes_of(holding);
    } else if (layout.mesh.cp == 1) {
      bytes += std::max(bytes_of(giving), bytes_of(holding));
    } else {
      // The first ranks of a long document send its keys to all, and have little work themselves.
      ServerRows both = holding;
      both.sent_queries = giving.sent_queries;
      both.sent_keys = giving.sent_keys;
      bytes += bytes_of(both);
    }
  }
  return bytes + CoreBackwardScratch(layer, queries, compute);
}

}  // namespace evenkeel
