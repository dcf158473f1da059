#include "attention/server_exchange.h"

#include <algorithm>
#include <utility>

namespace evenkeel {
namespace {

void AppendRange(std::vector<RowRange>& ranges, int64_t from, int64_t to, int64_t count) {
  if (!ranges.empty() && ranges.back().from + ranges.back().count == from &&
      ranges.back().to + ranges.back().count == to) {
    ranges.back().count += count;
  } else {
    ranges.push_back({from, to, count});
  }
}

std::vector<RowRange> Inverse(std::vector<RowRange> ranges) {
  for (RowRange& range : ranges) std::swap(range.from, range.to);
  return ranges;
}

// Follows the rows of one kind into the buffers of one server after another.
class RouteBuilder {
 public:
  RouteBuilder(int rank, RowRoute& route) : rank_(rank), route_(route) {}

  void BeginServer(int server) {
    server_ = server;
    last_owner_ = -1;
    at_ = 0;
  }
  // Rows of the server's buffer so far.
  int64_t at() const { return at_; }

  // The server's next rows are `row`, row + 1, ... of `owner`.
  void Add(int owner, int64_t row, int64_t count) {
    const bool continues = owner == last_owner_;
    if (server_ == rank_) {
      if (owner == rank_) {
        AppendRange(route_.kept, row, at_, count);
      } else {
        AppendMessage(route_.receives, continues, owner, at_, count);
      }
    } else if (owner == rank_) {
      AppendRange(route_.sent, row, route_.num_sent, count);
      AppendMessage(route_.sends, continues, server_, route_.num_sent, count);
      route_.num_sent += count;
    }
    last_owner_ = owner;
    at_ += count;
    if (server_ == rank_) route_.num_held = at_;
  }

 private:
  static void AppendMessage(std::vector<RowMessage>& messages, bool continues, int peer,
                            int64_t begin, int64_t count) {
    if (continues) {
      messages.back().count += count;
    } else {
      messages.push_back({peer, begin, count});
    }
  }

  int rank_;
  RowRoute& route_;
  int server_ = -1;
  int last_owner_ = -1;
  int64_t at_ = 0;
};

// Calls body(piece, its first row, rows) for what of [begin, end) of the document each piece has.
template <typename Body>
void ForEachPiece(const AttentionPool& pool, const PooledDocument& document, int64_t begin,
                  int64_t end, const Body& body) {
  for (int32_t i = 0; i < document.num_pieces; ++i) {
    const DocumentPiece& piece = pool.pieces[static_cast<size_t>(document.first_piece + i)];
    const int64_t first = std::max(begin, piece.begin);
    const int64_t count = std::min(end, piece.begin + piece.length) - first;
    if (count > 0) body(piece, piece.row + first - piece.begin, count);
  }
}

// Numbers the messages of this rank by the rounds of all ranks' messages.
void SetRounds(const AttentionPool& pool, absl::Span<const ServerTask> tasks, int rank,
               absl::Span<RowRoute* const> routes) {
  const std::vector<AttentionLink> links = LinksOf(pool, tasks);
  const std::vector<std::vector<int32_t>> rounds = MessageRounds(pool.num_ranks, links);
  std::vector<int> to(static_cast<size_t>(pool.num_ranks)), from(to);  // round by peer
  for (size_t round = 0; round < rounds.size(); ++round) {
    for (const int32_t index : rounds[round]) {
      const AttentionLink& link = links[static_cast<size_t>(index)];
      if (link.from == rank) to[static_cast<size_t>(link.to)] = static_cast<int>(round);
      if (link.to == rank) from[static_cast<size_t>(link.from)] = static_cast<int>(round);
    }
  }
  for (RowRoute* route : routes) {
    for (RowMessage& send : route->sends) send.round = to[static_cast<size_t>(send.peer)];
    for (RowMessage& receive : route->receives) {
      receive.round = from[static_cast<size_t>(receive.peer)];
    }
  }
}

// What came back for rows [begin, begin + count) of this rank.
struct Returned {
  int64_t begin;
  int64_t count;
  int64_t from;  // row of the buffer
  int64_t order;
};

// Appends the intervals of the exchange within rows [begin, end).
void Collect(const ServerExchange& exchange, int64_t begin, int64_t end, int64_t buffer_begin,
             std::vector<Returned>& returned) {
  for (const ServerExchange::KeyInterval& interval : exchange.key_intervals) {
    const int64_t first = std::max(begin, interval.row);
    const int64_t count = std::min(end, interval.row + interval.count) - first;
    if (count <= 0) continue;
    returned.push_back(
        {first, count, buffer_begin + interval.returned + first - interval.row, interval.order});
  }
}

// Intervals of a piece begin together and end where their server needed no more keys.
KeyGradientList SumsOf(std::vector<Returned> returned) {
  KeyGradientList list;
  std::sort(returned.begin(), returned.end(), [](const Returned& a, const Returned& b) {
    return std::pair(a.begin, a.order) < std::pair(b.begin, b.order);
  });
  std::vector<int64_t> counts;
  for (size_t i = 0; i < returned.size();) {
    size_t end = i;
    counts.clear();
    for (; end < returned.size() && returned[end].begin == returned[i].begin; ++end) {
      counts.push_back(returned[end].count);
    }
    std::sort(counts.begin(), counts.end());
    counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
    int64_t from = 0;
    for (const int64_t until : counts) {
      RowSegment segment;
      segment.to = returned[i].begin + from;
      segment.count = until - from;
      segment.first_term = static_cast<int64_t>(list.terms.size());
      for (size_t j = i; j < end; ++j) {
        if (returned[j].count >= until) list.terms.push_back(returned[j].from + from);
      }
      segment.num_terms = static_cast<int64_t>(list.terms.size()) - segment.first_term;
      list.segments.push_back(segment);
      from = until;
    }
    i = end;
  }
  return list;
}

}  // namespace

ServerExchange MakeServerExchange(const AttentionPool& pool, const DisaggregationPlan& plan,
                                  int rank, bool has_residents) {
  ServerExchange exchange;
  RouteBuilder queries(rank, exchange.queries), keys(rank, exchange.keys);
  std::vector<ServerExchange::KeyInterval> kept_intervals;
  int server = -1;
  for (size_t i = 0; i < plan.tasks.size();) {
    const ServerTask& first = plan.tasks[i];
    if (first.server != server) {
      server = first.server;
      queries.BeginServer(server);
      keys.BeginServer(server);
    }
    if (has_residents && IsResident(pool, first)) {
      if (server == rank) {
        const PooledDocument& document = pool.documents[static_cast<size_t>(first.document)];
        const int64_t row = pool.pieces[static_cast<size_t>(document.first_piece)].row;
        exchange.resident_list.push_back({row, first.q_len, row, first.q_len});
      }
      ++i;
      continue;
    }
    // All tasks of one document on one server share its keys.
    size_t end = i;
    while (end < plan.tasks.size() && plan.tasks[end].server == server &&
           plan.tasks[end].document == first.document) {
      ++end;
    }
    const PooledDocument& document = pool.documents[static_cast<size_t>(first.document)];
    const int64_t key_begin = keys.at();
    ForEachPiece(
        pool, document, 0, plan.tasks[end - 1].kv_len(),
        [&](const DocumentPiece& piece, int64_t row, int64_t count) {
          if (piece.owner == rank && server == rank) {
            kept_intervals.push_back({row, count, exchange.num_kept_keys, first.q_begin});
            exchange.num_kept_keys += count;
          } else if (piece.owner == rank) {
            exchange.key_intervals.push_back({row, count, exchange.keys.num_sent, first.q_begin});
          }
          keys.Add(piece.owner, row, count);
        });
    for (; i < end; ++i) {
      const ServerTask& task = plan.tasks[i];
      if (server == rank) {
        exchange.task_list.push_back({queries.at(), task.q_len, key_begin, task.kv_len()});
      }
      ForEachPiece(pool, document, task.q_begin, task.q_begin + task.q_len,
                   [&](const DocumentPiece& piece, int64_t row, int64_t count) {
                     queries.Add(piece.owner, row, count);
                   });
    }
  }
  for (ServerExchange::KeyInterval& interval : kept_intervals) {
    interval.returned += exchange.keys.num_sent;
    exchange.key_intervals.push_back(interval);
  }
  int64_t kept = exchange.keys.num_sent;
  for (const RowRange& range : exchange.keys.kept) {
    exchange.kept_returned.push_back({range.to, kept, range.count});
    kept += range.count;
  }
  RowRoute* const routes[] = {&exchange.queries, &exchange.keys};
  for (RowRoute* route : routes) {
    route->sent_back = Inverse(route->sent);
    route->kept_back = Inverse(route->kept);
  }
  SetRounds(pool, plan.tasks, rank, routes);
  if (!plan.load.empty()) exchange.planned_seconds = plan.load[static_cast<size_t>(rank)];
  return exchange;
}

void KeyGradientSums(const ServerExchange& first, const ServerExchange& second, int64_t first_rows,
                     KeyGradientList& first_sums, KeyGradientList& second_sums) {
  std::vector<Returned> before, after;
  Collect(first, 0, first_rows, second.num_returned(), before);
  Collect(second, 0, first_rows, 0, before);
  Collect(second, first_rows, INT64_MAX, 0, after);
  first_sums = SumsOf(std::move(before));
  second_sums = SumsOf(std::move(after));
}

void Prepare(const OpContext& context, const TaskHeads& heads, bool backward,
             ServerExchange& exchange) {
  exchange.resident_tasks = PlanTasks(context, exchange.resident_list, heads, backward);
  exchange.tasks = PlanTasks(context, exchange.task_list, heads, backward);
  const auto mirror = [&](const std::vector<RowRange>& list) {
    return Mirror(context, RowRanges(list));
  };
  exchange.sent_queries = mirror(exchange.queries.sent);
  exchange.kept_queries = mirror(exchange.queries.kept);
  exchange.sent_queries_back = mirror(exchange.queries.sent_back);
  exchange.kept_queries_back = mirror(exchange.queries.kept_back);
  exchange.sent_keys = mirror(exchange.keys.sent);
  exchange.kept_keys = mirror(exchange.keys.kept);
  exchange.returned_keys = mirror(exchange.kept_returned);
}

}  // namespace evenkeel
