// The exchanges of all ranks of a pool, carried out in one process on arrays of token identities:
// what arrives is compared with what the plan names, row by row.
#include "attention/server_exchange.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "tests/support/pool_draw.h"

namespace evenkeel {
namespace {

using testing_support::PoolDraw;
using testing_support::PoolRandom;

// Rows hold the identity of a token, its owner and row there, or of a result.
using Rows = std::vector<int64_t>;
constexpr int64_t kNone = -1;
constexpr int64_t kRank = int64_t{1} << 20;  // a rank has fewer rows

int64_t TokenAt(int owner, int64_t row) {
  return owner * kRank + row;
}

// Of position `at` of the document.
int64_t TokenOf(const AttentionPool& pool, int32_t document, int64_t at) {
  const PooledDocument& found = pool.documents[static_cast<size_t>(document)];
  for (int32_t i = 0; i < found.num_pieces; ++i) {
    const DocumentPiece& piece = pool.pieces[static_cast<size_t>(found.first_piece + i)];
    if (at < piece.begin + piece.length) return TokenAt(piece.owner, piece.row + at - piece.begin);
  }
  return kNone;
}

// Every row that is written is written for the first time.
void Put(Rows& to, int64_t row, int64_t value) {
  ASSERT_GE(row, 0);
  ASSERT_LT(row, static_cast<int64_t>(to.size()));
  ASSERT_EQ(to[static_cast<size_t>(row)], kNone) << "row " << row << " is written twice";
  to[static_cast<size_t>(row)] = value;
}

void Copy(const std::vector<RowRange>& ranges, const Rows& from, Rows& to) {
  for (const RowRange& range : ranges) {
    ASSERT_GT(range.count, 0);
    ASSERT_GE(range.from, 0);
    ASSERT_LE(range.from + range.count, static_cast<int64_t>(from.size()));
    for (int64_t i = 0; i < range.count; ++i) {
      ASSERT_NO_FATAL_FAILURE(Put(to, range.to + i, from[static_cast<size_t>(range.from + i)]));
    }
  }
}

// Messages from `sender` that `receiver` finds in the same order, of the same lengths.
void Deliver(int sender, const std::vector<RowMessage>& sends, const Rows& from, int receiver,
             const std::vector<RowMessage>& receives, Rows& to) {
  std::vector<RowMessage> sent, received;
  for (const RowMessage& message : sends) {
    if (message.peer == receiver) sent.push_back(message);
  }
  for (const RowMessage& message : receives) {
    if (message.peer == sender) received.push_back(message);
  }
  ASSERT_EQ(sent.size(), received.size()) << "from " << sender << " to " << receiver;
  ASSERT_TRUE(sender != receiver || sent.empty()) << sender << " sends to itself";
  for (size_t m = 0; m < sent.size(); ++m) {
    ASSERT_GT(sent[m].count, 0);
    ASSERT_EQ(sent[m].count, received[m].count) << "from " << sender << " to " << receiver;
    ASSERT_LE(sent[m].begin + sent[m].count, static_cast<int64_t>(from.size()));
    for (int64_t i = 0; i < sent[m].count; ++i) {
      ASSERT_NO_FATAL_FAILURE(
          Put(to, received[m].begin + i, from[static_cast<size_t>(sent[m].begin + i)]));
    }
  }
}

// The exchanges of one nano-batch.
struct Exchanges {
  const AttentionPool& pool;
  const DisaggregationPlan& plan;
  bool has_residents;
  std::vector<ServerExchange> of;  // by rank

  Exchanges(const AttentionPool& p, const DisaggregationPlan& disaggregation, bool residents)
      : pool(p), plan(disaggregation), has_residents(residents) {
    for (int rank = 0; rank < pool.num_ranks; ++rank) {
      of.push_back(MakeServerExchange(pool, plan, rank, residents));
    }
  }

  // By the definition: a document that nobody else has a part in, now or later.
  bool IsResident(const ServerTask& task) const {
    const PooledDocument& document = pool.documents[static_cast<size_t>(task.document)];
    if (!has_residents || document.continues || document.q_begin > 0) return false;
    for (int64_t at = 0; at < document.length; ++at) {
      if (TokenOf(pool, task.document, at) / kRank != task.server) return false;
    }
    // On one rank the pieces of a document are one: there it is whole.
    return task.q_len == document.length && document.num_pieces == 1;
  }

  // Numbers of keys by (server, document), of what is not resident.
  std::map<std::pair<int32_t, int32_t>, int64_t> Keys() const {
    std::map<std::pair<int32_t, int32_t>, int64_t> keys;
    for (const ServerTask& task : plan.tasks) {
      if (IsResident(task)) continue;
      int64_t& most = keys[{task.server, task.document}];
      most = std::max(most, task.kv_len());
    }
    return keys;
  }

  // There and, with `route` of every rank, what every server's buffer then holds.
  std::vector<Rows> Dispatch(const std::vector<Rows>& rows, RowRoute ServerExchange::*route) const {
    std::vector<Rows> sent, held;
    for (size_t r = 0; r < of.size(); ++r) {
      const RowRoute& way = of[r].*route;
      sent.emplace_back(way.num_sent, kNone);
      held.emplace_back(way.num_held, kNone);
      Copy(way.sent, rows[r], sent[r]);
      Copy(way.kept, rows[r], held[r]);
      EXPECT_EQ(std::count(sent[r].begin(), sent[r].end(), kNone), 0) << "rank " << r;
    }
    for (size_t from = 0; from < of.size(); ++from) {
      for (size_t to = 0; to < of.size(); ++to) {
        Deliver(static_cast<int>(from), (of[from].*route).sends, sent[from], static_cast<int>(to),
                (of[to].*route).receives, held[to]);
      }
    }
    for (const Rows& server : held) EXPECT_EQ(std::count(server.begin(), server.end(), kNone), 0);
    return held;
  }
};

// What the exchanges move is what the plan's links and kept rows say, which the simulator times,
// and in the rounds of its messages.
void ExpectLinks(const Exchanges& exchanges) {
  const int ranks = exchanges.pool.num_ranks;
  std::map<std::pair<int, int>, std::pair<int64_t, int64_t>> moved;  // (from, to): queries, keys
  for (int rank = 0; rank < ranks; ++rank) {
    const ServerExchange& exchange = exchanges.of[static_cast<size_t>(rank)];
    for (const RowMessage& send : exchange.queries.sends)
      moved[{rank, send.peer}].first += send.count;
    for (const RowMessage& send : exchange.keys.sends)
      moved[{rank, send.peer}].second += send.count;
    for (const RowRange& kept : exchange.queries.kept) moved[{rank, rank}].first += kept.count;
    for (const RowRange& kept : exchange.keys.kept) moved[{rank, rank}].second += kept.count;
  }
  const std::vector<AttentionLink> links = LinksOf(exchanges.pool, exchanges.plan.tasks);
  std::map<std::pair<int, int>, std::pair<int64_t, int64_t>> expected;
  for (const AttentionLink& link : links)
    expected[{link.from, link.to}] = {link.q_tokens, link.kv_tokens};
  for (const AttentionLink& kept :
       KeptRows(exchanges.pool, exchanges.plan.tasks, exchanges.has_residents)) {
    expected[{kept.from, kept.to}] = {kept.q_tokens, kept.kv_tokens};
  }
  ASSERT_EQ(moved, expected);

  std::map<std::pair<int, int>, int> round_of;
  const auto rounds = MessageRounds(ranks, links);
  for (size_t round = 0; round < rounds.size(); ++round) {
    for (const int32_t index : rounds[round]) {
      const AttentionLink& link = links[static_cast<size_t>(index)];
      round_of[{link.from, link.to}] = static_cast<int>(round);
    }
  }
  for (int rank = 0; rank < ranks; ++rank) {
    for (const auto route : {&ServerExchange::queries, &ServerExchange::keys}) {
      const RowRoute& way = exchanges.of[static_cast<size_t>(rank)].*route;
      for (const RowMessage& m : way.sends) ASSERT_EQ(m.round, (round_of[{rank, m.peer}]));
      for (const RowMessage& m : way.receives) ASSERT_EQ(m.round, (round_of[{m.peer, rank}]));
    }
  }
}

// What one owner has end to end is one message.
void ExpectFewMessages(const RowRoute& route) {
  for (size_t m = 1; m < route.receives.size(); ++m) {
    const RowMessage& last = route.receives[m - 1];
    ASSERT_TRUE(last.peer != route.receives[m].peer ||
                last.begin + last.count < route.receives[m].begin);
  }
}

void ExpectTasks(const Exchanges& exchanges, const std::vector<Rows>& queries,
                 const std::vector<Rows>& keys) {
  for (size_t s = 0; s < exchanges.of.size(); ++s) {
    SCOPED_TRACE(testing::Message() << "server " << s);
    const ServerExchange& exchange = exchanges.of[s];
    ASSERT_NO_FATAL_FAILURE(ExpectFewMessages(exchange.queries));
    ASSERT_NO_FATAL_FAILURE(ExpectFewMessages(exchange.keys));
    EXPECT_EQ(exchange.planned_seconds, exchanges.plan.load[s]);
    size_t task_at = 0, resident_at = 0;
    std::map<int32_t, int64_t> key_begin;  // by document
    int64_t num_queries = 0;
    for (const ServerTask& task : exchanges.plan.tasks) {
      if (task.server != static_cast<int>(s)) continue;
      const auto token = [&](int64_t at) { return TokenOf(exchanges.pool, task.document, at); };
      if (exchanges.IsResident(task)) {
        ASSERT_LT(resident_at, exchange.resident_list.size());
        const AttentionTask& found = exchange.resident_list[resident_at++];
        ASSERT_EQ(found.q_len, task.q_len);
        ASSERT_EQ(found.kv_len, task.kv_len());
        ASSERT_EQ(found.q_ahead, 0);
        ASSERT_EQ(TokenAt(task.server, found.q_begin), token(0));
        ASSERT_EQ(TokenAt(task.server, found.kv_begin), token(0));
        continue;
      }
      ASSERT_LT(task_at, exchange.task_list.size());
      const AttentionTask& found = exchange.task_list[task_at++];
      ASSERT_EQ(found.q_len, task.q_len);
      ASSERT_EQ(found.kv_len, task.kv_len());
      ASSERT_EQ(found.q_ahead, 0);
      ASSERT_LE(found.q_begin + found.q_len, static_cast<int64_t>(queries[s].size()));
      ASSERT_LE(found.kv_begin + found.kv_len, static_cast<int64_t>(keys[s].size()));
      for (int64_t i = 0; i < task.q_len; ++i) {
        ASSERT_EQ(queries[s][static_cast<size_t>(found.q_begin + i)], token(task.q_begin + i));
      }
      for (int64_t i = 0; i < task.kv_len(); ++i) {
        ASSERT_EQ(keys[s][static_cast<size_t>(found.kv_begin + i)], token(i));
      }
      const auto [first, is_new] = key_begin.insert({task.document, found.kv_begin});
      ASSERT_EQ(first->second, found.kv_begin) << "keys of a document are there twice";
      num_queries += task.q_len;
    }
    ASSERT_EQ(task_at, exchange.task_list.size());
    ASSERT_EQ(resident_at, exchange.resident_list.size());
    // Nothing else has come, and nothing twice.
    ASSERT_EQ(num_queries, exchange.queries.num_held);
    int64_t num_keys = 0;
    for (const auto& [whose, count] : exchanges.Keys()) {
      if (whose.first == static_cast<int>(s)) num_keys += count;
    }
    ASSERT_EQ(num_keys, exchange.keys.num_held);
  }
}

// Results, here of server s: the query plus a number of its own.
int64_t ResultOf(int64_t query) {
  return query + (int64_t{1} << 40);
}

void ExpectResultsBack(const Exchanges& exchanges, const std::vector<Rows>& rows,
                       const std::vector<Rows>& queries) {
  std::vector<Rows> results(queries), sent, out;
  for (Rows& server : results)
    std::transform(server.begin(), server.end(), server.begin(), ResultOf);
  for (size_t r = 0; r < exchanges.of.size(); ++r) {
    sent.emplace_back(exchanges.of[r].queries.num_sent, kNone);
    out.emplace_back(rows[r].size(), kNone);
  }
  // Back the way they came: what was received is sent.
  for (size_t from = 0; from < exchanges.of.size(); ++from) {
    for (size_t to = 0; to < exchanges.of.size(); ++to) {
      Deliver(static_cast<int>(from), exchanges.of[from].queries.receives, results[from],
              static_cast<int>(to), exchanges.of[to].queries.sends, sent[to]);
    }
  }
  for (size_t r = 0; r < exchanges.of.size(); ++r) {
    Copy(exchanges.of[r].queries.sent_back, sent[r], out[r]);
    Copy(exchanges.of[r].queries.kept_back, results[r], out[r]);
  }
  std::vector<Rows> expected;
  for (const Rows& mine : rows) expected.emplace_back(mine.size(), kNone);
  for (const ServerTask& task : exchanges.plan.tasks) {
    if (exchanges.IsResident(task)) continue;
    for (int64_t at = task.q_begin; at < task.kv_len(); ++at) {
      const int64_t token = TokenOf(exchanges.pool, task.document, at);
      expected[static_cast<size_t>(token / kRank)][static_cast<size_t>(token % kRank)] =
          ResultOf(token);
    }
  }
  EXPECT_EQ(out, expected);
}

// One server's part of a key's gradient.
int64_t GradientOf(int64_t key, size_t server) {
  return key + static_cast<int64_t>(server + 1) * (int64_t{1} << 40);
}

// What returns of one nano-batch, for rank r.
Rows ReturnedTo(const Exchanges& exchanges, size_t r, const std::vector<Rows>& keys) {
  const ServerExchange& exchange = exchanges.of[r];
  Rows returned(static_cast<size_t>(exchange.num_returned()), kNone);
  for (size_t s = 0; s < exchanges.of.size(); ++s) {
    Rows gradients(keys[s]);
    for (int64_t& key : gradients) key = GradientOf(key, s);
    Deliver(static_cast<int>(s), exchanges.of[s].keys.receives, gradients, static_cast<int>(r),
            exchange.keys.sends, returned);
    if (s == r) Copy(exchange.kept_returned, gradients, returned);
  }
  EXPECT_EQ(std::count(returned.begin(), returned.end(), kNone), 0) << "rank " << r;
  return returned;
}

// By token: what its gradient is the sum of, in order: by nano-batch and first query of the server.
std::map<int64_t, Rows> ExpectedSums(const Exchanges& exchanges) {
  std::map<int64_t, std::map<int64_t, int64_t>> terms;  // token: (first query, part)
  std::map<std::pair<int32_t, int32_t>, int64_t> first;
  for (const ServerTask& task : exchanges.plan.tasks) {
    first.insert({{task.server, task.document}, task.q_begin});  // the first of them is the least
  }
  for (const auto& [whose, count] : exchanges.Keys()) {
    for (int64_t at = 0; at < count; ++at) {
      const int64_t token = TokenOf(exchanges.pool, whose.second, at);
      terms[token][first[whose]] = GradientOf(token, static_cast<size_t>(whose.first));
    }
  }
  std::map<int64_t, Rows> sums;
  for (const auto& [token, parts] : terms) {
    for (const auto& [query, part] : parts) sums[token].push_back(part);
  }
  return sums;
}

void ExpectSums(const KeyGradientList& list, const Rows& returned, std::map<int64_t, Rows>& sums,
                int rank, int64_t row_begin, int64_t row_end) {
  for (const RowSegment& segment : list.segments) {
    ASSERT_GT(segment.count, 0);
    ASSERT_GE(segment.to, row_begin);
    ASSERT_LE(segment.to + segment.count, row_end);
    for (int64_t i = 0; i < segment.count; ++i) {
      Rows& sum = sums[TokenAt(rank, segment.to + i)];
      ASSERT_TRUE(sum.empty()) << "row " << segment.to + i << " is summed twice";
      for (int64_t t = 0; t < segment.num_terms; ++t) {
        const int64_t term = list.terms[static_cast<size_t>(segment.first_term + t)] + i;
        ASSERT_LT(term, static_cast<int64_t>(returned.size()));
        sum.push_back(returned[static_cast<size_t>(term)]);
      }
    }
  }
}

// Runs both nano-batches of the draw under the plans and checks all there is to check.
void ExpectExchanges(const PoolDraw& draw, const DisaggregationPlan plans[2], bool has_residents) {
  std::vector<Rows> rows;  // by rank
  for (size_t r = 0; r < draw.rows.size(); ++r) {
    rows.emplace_back();
    for (int64_t i = 0; i < draw.rows[r]; ++i) {
      rows.back().push_back(TokenAt(static_cast<int>(r), i));
    }
  }
  const Exchanges nanos[2] = {{draw.pools[0], plans[0], has_residents},
                              {draw.pools[1], plans[1], has_residents}};
  std::vector<Rows> keys[2];
  std::set<int64_t> stay;
  for (int n = 0; n < 2; ++n) {
    SCOPED_TRACE(testing::Message() << "nano-batch " << n);
    const std::vector<Rows> queries = nanos[n].Dispatch(rows, &ServerExchange::queries);
    keys[n] = nanos[n].Dispatch(rows, &ServerExchange::keys);
    if (testing::Test::HasFatalFailure()) return;
    ASSERT_NO_FATAL_FAILURE(ExpectTasks(nanos[n], queries, keys[n]));
    ASSERT_NO_FATAL_FAILURE(ExpectLinks(nanos[n]));
    ExpectResultsBack(nanos[n], rows, queries);
    for (const ServerTask& task : plans[n].tasks) {
      for (int64_t at = 0; nanos[n].IsResident(task) && at < task.kv_len(); ++at) {
        stay.insert(TokenOf(draw.pools[n], task.document, at));
      }
    }
  }
  std::map<int64_t, Rows> expected = ExpectedSums(nanos[0]), sums;
  for (const auto& [token, parts] : ExpectedSums(nanos[1])) {
    expected[token].insert(expected[token].end(), parts.begin(), parts.end());
  }
  size_t num_rows = 0;
  for (size_t r = 0; r < rows.size(); ++r) {
    Rows returned = ReturnedTo(nanos[1], r, keys[1]);
    const Rows of_first = ReturnedTo(nanos[0], r, keys[0]);
    returned.insert(returned.end(), of_first.begin(), of_first.end());
    KeyGradientList lists[2];
    KeyGradientSums(nanos[0].of[r], nanos[1].of[r], draw.first_rows[r], lists[0], lists[1]);
    const int rank = static_cast<int>(r);
    ExpectSums(lists[0], returned, sums, rank, 0, draw.first_rows[r]);
    ExpectSums(lists[1], returned, sums, rank, draw.first_rows[r], draw.rows[r]);
    num_rows += rows[r].size();
  }
  EXPECT_EQ(sums, expected);
  // The kernel writes the gradients of what stays where it is.
  EXPECT_EQ(sums.size() + stay.size(), num_rows);
  for (const int64_t token : stay) EXPECT_EQ(sums.count(token), 0);
}

TEST(ServerExchange, CarriesOutRandomPlans) {
  for (uint64_t seed = 1; seed <= 400; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    PoolRandom random(seed);
    const PoolDraw draw = testing_support::RandomPools(random, static_cast<int>(random(1, 9)), 120);
    const DisaggregationPlan plans[2] = {testing_support::RandomPlan(random, draw.pools[0]),
                                         testing_support::RandomPlan(random, draw.pools[1])};
    for (const bool has_residents : {false, true}) {
      ExpectExchanges(draw, plans, has_residents);
      if (HasFailure()) return;
    }
  }
}

TEST(ServerExchange, CarriesOutThePlannersPlans) {
  int64_t moved = 0;
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    PoolRandom random(1000 + seed);
    PoolDraw draw = testing_support::RandomPools(random, static_cast<int>(random(1, 9)), 300);
    DisaggregationPlan plans[2];
    const bool in_place = random.OneIn(5);
    for (int n = 0; n < 2; ++n) {
      AttentionPool& pool = draw.pools[n];
      pool.bytes = {.q = 1024, .kv = 512, .out = 1024, .lse = 16, .kv_gradient = 1024};
      for (double& speed : pool.speed) {
        if (!in_place && random.OneIn(6)) speed = static_cast<double>(random(0, 2)) / 2;
      }
      pool.speed.front() = 1;
      const AttentionCost cost = AttentionCost::PerPair(1e-9);
      plans[n] = in_place ? PlanInPlace(pool, cost)
                          : PlanDisaggregation(pool, cost, {.tolerance = 0.05, .shard_tokens = 8});
      for (const AttentionLink& link : LinksOf(pool, plans[n].tasks)) moved += link.q_tokens;
    }
    ExpectExchanges(draw, plans, random.OneIn(2));
    if (HasFailure()) return;
  }
  EXPECT_GT(moved, 10000) << "the plans moved too little to show anything";
}

// A server's keys end where its last task needs no more: the sums change there.
TEST(ServerExchange, SumsByTable) {
  AttentionPool first, second;
  first.num_ranks = second.num_ranks = 3;
  first.speed = second.speed = {1, 1, 1};
  const PooledBatch batch = {{0, 12}, {0}};
  FillPool({&batch, 1}, NanoBatch::kFirst, first);
  FillPool({&batch, 1}, NanoBatch::kSecond, second);
  // Of queries 0 to 5, 0 to 3 stay and 4, 5 go to rank 2; of 6 to 11, 6 and 7 go to rank 1.
  const auto one = testing_support::PlanOfTasks(first, {{0, 0, 0, 4}, {0, 2, 4, 2}});
  const auto two = testing_support::PlanOfTasks(second, {{0, 1, 6, 2}, {0, 0, 8, 4}});
  KeyGradientList lists[2];
  KeyGradientSums(MakeServerExchange(first, one, 0, true), MakeServerExchange(second, two, 0, true),
                  6, lists[0], lists[1]);
  // The buffer: 8 rows from rank 1, 12 kept, in the first nano-batch 6 from rank 2 and 4 kept.
  using Segment = std::vector<int64_t>;
  const auto segments = [](const KeyGradientList& list) {
    std::vector<Segment> result;
    for (const RowSegment& segment : list.segments) {
      result.push_back({segment.to, segment.count});
      const auto terms = list.terms.begin() + segment.first_term;
      result.back().insert(result.back().end(), terms, terms + segment.num_terms);
    }
    return result;
  };
  EXPECT_EQ(segments(lists[0]), (std::vector<Segment>{{0, 4, 26, 20, 0, 8}, {4, 2, 24, 4, 12}}));
  EXPECT_EQ(segments(lists[1]), (std::vector<Segment>{{6, 2, 6, 14}, {8, 4, 16}}));
}

TEST(ServerExchange, OfNothing) {
  AttentionPool pool;
  pool.num_ranks = 2;
  pool.speed = {1, 1};
  const ServerExchange exchange = MakeServerExchange(pool, DisaggregationPlan(), 1, true);
  EXPECT_TRUE(exchange.task_list.empty());
  EXPECT_TRUE(exchange.resident_list.empty());
  EXPECT_EQ(exchange.num_returned(), 0);
  KeyGradientList lists[2];
  KeyGradientSums(exchange, exchange, 0, lists[0], lists[1]);
  EXPECT_TRUE(lists[0].segments.empty());
  EXPECT_TRUE(lists[1].segments.empty());
}

}  // namespace
}  // namespace evenkeel
