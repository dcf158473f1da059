// LinksOf and KeptRows: what a plan's tasks make ranks send to one another, or copy.
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

// Calls body(owner, queries, keys) for every piece of the document that its tasks on one server
// need rows of.
template <typename Body>
void ForEachPiece(const AttentionPool& pool, absl::Span<const ServerTask> tasks, const Body& body) {
  const PooledDocument& document = pool.documents[static_cast<size_t>(tasks[0].document)];
  const int64_t keys = tasks.back().kv_len();
  const auto pieces = absl::MakeConstSpan(pool.pieces)
                          .subspan(static_cast<size_t>(document.first_piece),
                                   static_cast<size_t>(document.num_pieces));
  size_t task = 0;
  for (const DocumentPiece& piece : pieces) {
    if (piece.begin >= keys) break;
    int64_t queries = 0;
    while (task < tasks.size() && tasks[task].kv_len() <= piece.begin) ++task;
    for (size_t i = task; i < tasks.size() && tasks[i].q_begin < piece.begin + piece.length; ++i) {
      queries += Overlap(piece, tasks[i].q_begin, tasks[i].kv_len());
    }
    body(piece.owner, queries, Overlap(piece, 0, keys));
  }
}

// The first tasks, of one document on one server.
size_t CountAlike(absl::Span<const ServerTask> tasks) {
  size_t count = 1;
  while (count < tasks.size() && tasks[count].server == tasks[0].server &&
         tasks[count].document == tasks[0].document) {
    ++count;
  }
  return count;
}

}  // namespace

std::vector<AttentionLink> LinksOf(const AttentionPool& pool, absl::Span<const ServerTask> tasks) {
  std::vector<AttentionLink> links;
  Inbox inbox(pool.num_ranks);
  while (!tasks.empty()) {
    const int32_t server = tasks[0].server;
    const size_t count = CountAlike(tasks);
    ForEachPiece(pool, tasks.first(count), [&](int32_t owner, int64_t queries, int64_t keys) {
      if (owner != server) inbox.Add(owner, queries, keys);
    });
    tasks.remove_prefix(count);
    if (tasks.empty() || tasks[0].server != server) inbox.MoveTo(server, &links);
  }
  // By `to` so far; kept in that order within each `from`.
  std::vector<size_t> next(static_cast<size_t>(pool.num_ranks) + 1, 0);
  for (const AttentionLink& link : links) ++next[static_cast<size_t>(link.from) + 1];
  for (size_t rank = 1; rank < next.size(); ++rank) next[rank] += next[rank - 1];
  std::vector<AttentionLink> sorted(links.size());
  for (const AttentionLink& link : links) sorted[next[static_cast<size_t>(link.from)]++] = link;
  return sorted;
}

bool IsResident(const AttentionPool& pool, const ServerTask& task) {
  const PooledDocument& document = pool.documents[static_cast<size_t>(task.document)];
  return task.q_len == document.length && !document.continues && document.num_pieces == 1 &&
         pool.pieces[static_cast<size_t>(document.first_piece)].owner == task.server;
}

std::vector<AttentionLink> KeptRows(const AttentionPool& pool, absl::Span<const ServerTask> tasks,
                                    bool has_residents) {
  std::vector<AttentionLink> kept;  // tasks are sorted by server
  while (!tasks.empty()) {
    const int32_t server = tasks[0].server;
    const size_t count = CountAlike(tasks);
    const auto alike = tasks.first(count);
    tasks.remove_prefix(count);
    if (has_residents && IsResident(pool, alike[0])) continue;
    ForEachPiece(pool, alike, [&](int32_t owner, int64_t queries, int64_t keys) {
      if (owner != server) return;
      if (kept.empty() || kept.back().to != server) kept.push_back({server, server, 0, 0});
      kept.back().q_tokens += queries;
      kept.back().kv_tokens += keys;
    });
  }
  return kept;
}

}  // namespace evenkeel
