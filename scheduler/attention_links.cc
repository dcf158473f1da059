// LinksOf: what a plan's tasks make ranks send to one another.
#include <algorithm>

#include "scheduler/disaggregation_plan.h"

namespace evenkeel {
namespace {

// Tokens of [begin, begin + length) of `piece` that lie within [from, to).
int64_t Overlap(const DocumentPiece& piece, int64_t from, int64_t to) {
  return std::max<int64_t>(0,
                           std::min(piece.begin + piece.length, to) - std::max(piece.begin, from));
}

// What one server receives, by owner.
class Inbox {
 public:
  explicit Inbox(int num_ranks) : links_(static_cast<size_t>(num_ranks)) {}

  void Add(int32_t owner, int64_t q_tokens, int64_t kv_tokens) {
    AttentionLink& link = links_[static_cast<size_t>(owner)];
    if (link.q_tokens + link.kv_tokens == 0) owners_.push_back(owner);
    link.q_tokens += q_tokens;
    link.kv_tokens += kv_tokens;
  }

  void MoveTo(int32_t server, std::vector<AttentionLink>* links) {
    for (const int32_t owner : owners_) {
      AttentionLink& link = links_[static_cast<size_t>(owner)];
      links->push_back({owner, server, link.q_tokens, link.kv_tokens});
      link = {};
    }
    owners_.clear();
  }

 private:
  std::vector<AttentionLink> links_;  // by owner; from and to unset
  std::vector<int32_t> owners_;       // with something in `links_`
};

}  // namespace

std::vector<AttentionLink> LinksOf(const AttentionPool& pool, absl::Span<const ServerTask> tasks) {
  std::vector<AttentionLink> links;
  Inbox inbox(pool.num_ranks);
  for (size_t first = 0, end = 0; first < tasks.size(); first = end) {
    const int32_t server = tasks[first].server;
    const PooledDocument& document = pool.documents[static_cast<size_t>(tasks[first].document)];
    while (end < tasks.size() && tasks[end].server == server &&
           tasks[end].document == tasks[first].document) {
      ++end;
    }
    const int64_t keys = tasks[end - 1].kv_len();
    const auto pieces = absl::MakeConstSpan(pool.pieces)
                            .subspan(static_cast<size_t>(document.first_piece),
                                     static_cast<size_t>(document.num_pieces));
    size_t task = first;
    for (const DocumentPiece& piece : pieces) {
      if (piece.begin >= keys) break;
      int64_t queries = 0;
      while (task < end && tasks[task].kv_len() <= piece.begin) ++task;
      for (size_t i = task; i < end && tasks[i].q_begin < piece.begin + piece.length; ++i) {
        queries += Overlap(piece, tasks[i].q_begin, tasks[i].kv_len());
      }
      if (piece.owner != server) inbox.Add(piece.owner, queries, Overlap(piece, 0, keys));
    }
    if (end == tasks.size() || tasks[end].server != server) inbox.MoveTo(server, &links);
  }
  // By `to` so far; kept in that order within each `from`.
  std::vector<size_t> next(static_cast<size_t>(pool.num_ranks) + 1, 0);
  for (const AttentionLink& link : links) ++next[static_cast<size_t>(link.from) + 1];
  for (size_t rank = 1; rank < next.size(); ++rank) next[rank] += next[rank - 1];
  std::vector<AttentionLink> sorted(links.size());
  for (const AttentionLink& link : links) sorted[next[static_cast<size_t>(link.from)]++] = link;
  return sorted;
}

}  // namespace evenkeel
