// Pools from batches, token by token: SequenceLayout says whose row every token is, the pool's
// pieces have to say the same.
#include "scheduler/pool_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <utility>

#include "parallel/sequence_layout.h"

namespace evenkeel {

void PrintTo(const DocumentPiece& piece, std::ostream* out) {
  *out << piece.length << " tokens from " << piece.begin << ": row " << piece.row << " of rank "
       << piece.owner;
}

namespace {

using Pieces = std::vector<DocumentPiece>;

int64_t Draw(std::mt19937_64& engine, int64_t low, int64_t high) {
  return low + static_cast<int64_t>(engine() % static_cast<uint64_t>(high - low + 1));
}

// Batches over disjoint ranks in any order, with empty documents, documents of one token, and ones
// longer than any rank's share; some have fewer tokens than ranks, or none.
std::vector<PooledBatch> RandomBatches(std::mt19937_64& engine) {
  std::vector<int> ranks(static_cast<size_t>(Draw(engine, 4, 24)));
  std::iota(ranks.begin(), ranks.end(), 0);
  std::shuffle(ranks.begin(), ranks.end(), engine);
  std::vector<PooledBatch> batches(static_cast<size_t>(Draw(engine, 1, 4)));
  for (PooledBatch& batch : batches) {
    const auto cp = static_cast<size_t>(Draw(engine, 1, 6));
    for (; batch.ranks.size() < cp && !ranks.empty(); ranks.pop_back()) {
      batch.ranks.push_back(ranks.back());
    }
    batch.cu_seqlens = {0};
    for (int64_t n = Draw(engine, 0, 6); n > 0; --n) {
      const int64_t most =
          std::array<int64_t, 4>{0, 1, 5, 90}[static_cast<size_t>(Draw(engine, 0, 3))];
      batch.cu_seqlens.push_back(batch.cu_seqlens.back() + Draw(engine, most / 2, most));
    }
  }
  while (!batches.empty() && batches.back().ranks.empty()) batches.pop_back();
  return batches;
}

// (rank, row): (batch, document, position), as SequenceLayout has it.
using Token = std::tuple<size_t, int64_t, int64_t>;
std::map<std::pair<int, int64_t>, Token> TokensByRow(const std::vector<PooledBatch>& batches) {
  std::map<std::pair<int, int64_t>, Token> tokens;
  for (size_t b = 0; b < batches.size(); ++b) {
    const auto layout = SequenceLayout::Make(SequenceSplit::kHalves, batches[b].cu_seqlens,
                                             static_cast<int>(batches[b].ranks.size()));
    for (int rank = 0; rank < layout.num_ranks(); ++rank) {
      int64_t row = 0;
      for (const SequencePiece& piece : layout.pieces(rank)) {
        for (int64_t i = 0; i < piece.length; ++i) {
          tokens[{batches[b].ranks[static_cast<size_t>(rank)], row++}] = {b, piece.document,
                                                                          piece.begin + i};
        }
      }
    }
  }
  return tokens;
}

int64_t TokensOf(const std::vector<PooledBatch>& batches) {
  int64_t tokens = 0;
  for (const PooledBatch& batch : batches) tokens += batch.cu_seqlens.back();
  return tokens;
}

TEST(PoolLayout, HasEveryQueryOnceWithTheKeysBeforeIt) {
  for (uint64_t seed = 1; seed <= 600; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 engine(seed);
    const std::vector<PooledBatch> batches = RandomBatches(engine);
    const auto by_row = TokensByRow(batches);
    std::set<Token> queries;
    for (const NanoBatch nano : {NanoBatch::kFirst, NanoBatch::kSecond}) {
      const bool is_first = nano == NanoBatch::kFirst;
      AttentionPool pool;
      FillPool(batches, nano, pool);
      int32_t next_piece = 0;
      std::pair<size_t, int64_t> last = {0, -1};  // (batch, document)
      for (const PooledDocument& document : pool.documents) {
        ASSERT_LT(document.q_begin, document.length) << "nothing to compute";
        ASSERT_EQ(document.first_piece, next_piece);
        next_piece += document.num_pieces;
        int64_t position = 0;
        Token token;  // the last one
        std::pair<size_t, int64_t> whose = {0, -1};
        for (int32_t i = document.first_piece; i < next_piece; ++i) {
          const DocumentPiece& piece = pool.pieces[static_cast<size_t>(i)];
          ASSERT_EQ(piece.begin, position);
          ASSERT_GT(piece.length, 0);
          for (int64_t j = 0; j < piece.length; ++j, ++position) {
            const auto found = by_row.find({piece.owner, piece.row + j});
            ASSERT_NE(found, by_row.end()) << "rank " << piece.owner << " has no such row";
            token = found->second;
            if (position == 0) whose = {std::get<0>(token), std::get<1>(token)};
            ASSERT_EQ(token, Token(whose.first, whose.second, position));
            if (position >= document.q_begin) {
              ASSERT_TRUE(queries.insert(token).second) << "computed twice";
            }
            // Which half it lies in.
            const PooledBatch& batch = batches[whose.first];
            const int64_t half = FirstHalf(batch.cu_seqlens.back());
            const int64_t at = batch.cu_seqlens[static_cast<size_t>(whose.second)] + position;
            ASSERT_EQ(at < half, is_first || position < document.q_begin);
          }
        }
        ASSERT_EQ(position, document.length) << "keys are missing";
        ASSERT_LT(last, whose) << "documents are out of order";
        last = whose;
        const auto& cu = batches[whose.first].cu_seqlens;
        const int64_t whole =
            cu[static_cast<size_t>(whose.second) + 1] - cu[static_cast<size_t>(whose.second)];
        if (is_first) {
          ASSERT_EQ(document.q_begin, 0);
          ASSERT_EQ(document.continues, document.length < whole);
        } else {
          ASSERT_EQ(document.length, whole);
          ASSERT_FALSE(document.continues);
        }
      }
      ASSERT_EQ(static_cast<size_t>(next_piece), pool.pieces.size());
    }
    ASSERT_EQ(static_cast<int64_t>(queries.size()), TokensOf(batches));
  }
}

// What was in the pool before does not matter, nor does FillPool touch what is not a document.
TEST(PoolLayout, FillsAPoolAgain) {
  const std::vector<PooledBatch> batches = {{{0, 4, 10}, {1, 0}}};
  AttentionPool pool, fresh;
  pool.num_ranks = 3;
  pool.speed = {1, 2, 0};
  pool.bytes.q = 7;
  FillPool(batches, NanoBatch::kFirst, pool);
  FillPool(batches, NanoBatch::kSecond, pool);
  FillPool(batches, NanoBatch::kSecond, fresh);
  EXPECT_EQ(pool.pieces, fresh.pieces);
  EXPECT_EQ(pool.documents.size(), fresh.documents.size());
  EXPECT_EQ(pool.num_ranks, 3);
  EXPECT_EQ(pool.speed, (std::vector<double>{1, 2, 0}));
  EXPECT_EQ(pool.bytes.q, 7);
}

struct Case {
  const char* name;
  PooledBatch batch;
  Pieces first, second;  // of the pools' only document, empty where there is none
  int64_t q_begin;       // in the second nano-batch
  bool continues;        // from the first one
};

TEST(PoolLayout, OfOneDocumentByTable) {
  const Case cases[] = {
      {"no document", {{0}, {0, 1}}, {}, {}, 0, false},
      {"an empty document", {{0, 0}, {0}}, {}, {}, 0, false},
      {"one token", {{0, 1}, {5, 3}}, {{5, 0, 1, 0}}, {}, 0, false},
      {"one rank", {{0, 7}, {2}}, {{2, 0, 4, 0}}, {{2, 0, 7, 0}}, 4, true},
      {"two ranks",
       {{0, 8}, {1, 0}},
       {{1, 0, 2, 0}, {0, 2, 2, 0}},
       {{1, 0, 2, 0}, {0, 2, 2, 0}, {1, 4, 2, 2}, {0, 6, 2, 2}},
       4,
       true},
      // The longer parts go around the ranks.
      {"fewer tokens than ranks",
       {{0, 3}, {0, 1, 2, 3}},
       {{0, 0, 1, 0}, {1, 1, 1, 0}},
       {{0, 0, 1, 0}, {1, 1, 1, 0}, {2, 2, 1, 0}},
       2,
       true},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    AttentionPool pool;
    FillPool({&c.batch, 1}, NanoBatch::kFirst, pool);
    ASSERT_EQ(pool.documents.size(), c.first.empty() ? 0 : 1);
    EXPECT_EQ(pool.pieces, c.first);
    if (!c.first.empty()) {
      EXPECT_EQ(pool.documents[0].continues, c.continues);
      EXPECT_EQ(pool.documents[0].q_begin, 0);
    }
    FillPool({&c.batch, 1}, NanoBatch::kSecond, pool);
    ASSERT_EQ(pool.documents.size(), c.second.empty() ? 0 : 1);
    EXPECT_EQ(pool.pieces, c.second);
    if (!c.second.empty()) {
      EXPECT_EQ(pool.documents[0].q_begin, c.q_begin);
    }
  }
}

// Documents before the middle, after it, and over it; of a batch without tokens there is nothing.
TEST(PoolLayout, OfSeveralBatchesByTable) {
  const std::vector<PooledBatch> batches = {
      {{0}, {4}}, {{0, 2, 2, 7, 10}, {3, 1}}, {{0, 2, 4}, {0}}};
  AttentionPool pool;
  FillPool(batches, NanoBatch::kFirst, pool);
  ASSERT_EQ(pool.documents.size(), 3);
  EXPECT_EQ(pool.pieces, (Pieces{{3, 0, 2, 0}, {3, 0, 1, 2}, {1, 1, 2, 0}, {0, 0, 2, 0}}));
  EXPECT_FALSE(pool.documents[0].continues);
  EXPECT_TRUE(pool.documents[1].continues);
  EXPECT_FALSE(pool.documents[2].continues);
  FillPool(batches, NanoBatch::kSecond, pool);
  ASSERT_EQ(pool.documents.size(), 3);
  EXPECT_EQ(pool.documents[0].q_begin, 3);
  EXPECT_EQ(pool.documents[0].length, 5);
  EXPECT_EQ(pool.documents[1].q_begin, 0);
  EXPECT_EQ(pool.documents[2].q_begin, 0);
}

}  // namespace
}  // namespace evenkeel
