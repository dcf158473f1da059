#include "scheduler/document_placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <tuple>
#include <vector>

namespace evenkeel {
namespace {

using Row = std::tuple<int, int64_t, int64_t, int64_t>;  // owner, begin, length, row

std::vector<Row> RowsOf(const AttentionPool& pool) {
  std::vector<Row> rows;
  for (const DocumentPiece& piece : pool.pieces) {
    rows.push_back({piece.owner, piece.begin, piece.length, piece.row});
  }
  return rows;
}

TEST(CutEvenly, CutsWhereSharesEnd) {
  using ::testing::ElementsAre;
  using ::testing::SizeIs;
  EXPECT_THAT(CutEvenly(std::vector<int64_t>{6, 2, 4}, 3),
              ElementsAre(ElementsAre(4), ElementsAre(2, 2), ElementsAre(4)));
  EXPECT_THAT(CutEvenly(std::vector<int64_t>{2}, 4),
              ElementsAre(SizeIs(0), ElementsAre(1), SizeIs(0), ElementsAre(1)));
}

TEST(PlaceDocuments, InOrder) {
  const AttentionPool pool = PlaceDocuments({3, 12, 5}, 4, 5, DocumentPlacement::kInOrder);
  EXPECT_EQ(
      RowsOf(pool),
      (std::vector<Row>{{0, 0, 3, 0}, {0, 0, 2, 3}, {1, 2, 5, 0}, {2, 7, 5, 0}, {3, 0, 5, 0}}));
  EXPECT_EQ(pool.documents[1].length, 12);
  EXPECT_EQ(pool.documents[1].first_piece, 1);
  EXPECT_EQ(pool.documents[1].num_pieces, 3);
  EXPECT_EQ(pool.speed, (std::vector<double>{1, 1, 1, 1}));
}

TEST(PlaceDocuments, HeadTail) {
  // Of the second: 2 tokens, 5 tokens (3 and 2), and the middle.
  const AttentionPool pool = PlaceDocuments({3, 12, 5}, 4, 5, DocumentPlacement::kHeadTail);
  EXPECT_EQ(RowsOf(pool), (std::vector<Row>{{0, 0, 3, 0},
                                            {0, 0, 1, 3},
                                            {1, 1, 3, 0},
                                            {2, 4, 5, 0},
                                            {1, 9, 2, 3},
                                            {0, 11, 1, 4},
                                            {3, 0, 5, 0}}));
  EXPECT_EQ(pool.documents[1].num_pieces, 5);
}

TEST(PlaceDocuments, PiecesCoverDocuments) {
  for (const auto placement : {DocumentPlacement::kInOrder, DocumentPlacement::kHeadTail}) {
    for (int64_t room = 1; room < 20; ++room) {
      const std::vector<int64_t> lengths = {7, 1, 1, 30, 2, 19};
      const int ranks = static_cast<int>((60 + room - 1) / room);
      const AttentionPool pool = PlaceDocuments(lengths, ranks, room, placement);
      std::vector<int64_t> held(static_cast<size_t>(ranks), 0);
      for (size_t d = 0; d < lengths.size(); ++d) {
        int64_t position = 0;
        for (int32_t i = 0; i < pool.documents[d].num_pieces; ++i) {
          const auto& piece = pool.pieces[static_cast<size_t>(pool.documents[d].first_piece + i)];
          EXPECT_EQ(piece.begin, position);
          EXPECT_GT(piece.length, 0);
          position += piece.length;
          held[static_cast<size_t>(piece.owner)] += piece.length;
        }
        EXPECT_EQ(position, lengths[d]);
      }
      for (size_t r = 0; r + 1 < held.size(); ++r) EXPECT_EQ(held[r], room);
    }
  }
}

}  // namespace
}  // namespace evenkeel
