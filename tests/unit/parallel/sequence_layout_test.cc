#include "parallel/sequence_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <tuple>
#include <vector>

#include "runtime/base/philox.h"

namespace evenkeel {
namespace {

using Pieces = std::vector<SequencePiece>;
using Ranges = std::vector<std::tuple<int64_t, int64_t, int64_t>>;  // from, to, count

constexpr SequenceSplit kSplits[] = {SequenceSplit::kContiguous, SequenceSplit::kZigzag,
                                     SequenceSplit::kHalves};

std::vector<int64_t> CuSeqlens(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> cu = {0};
  for (const int64_t length : lengths) cu.push_back(cu.back() + length);
  return cu;
}

Ranges AsTuples(const std::vector<RowRange>& ranges) {
  Ranges tuples;
  for (const RowRange& range : ranges) tuples.emplace_back(range.from, range.to, range.count);
  return tuples;
}

// A mix of documents whose lengths spread over many orders of magnitude; some are empty.
std::vector<int64_t> RandomLengths(uint64_t mix) {
  const Philox random(71, mix);
  std::vector<int64_t> lengths(random.Bits(0) % 40);
  const uint64_t longest = uint64_t{1} << (random.Bits(1) % 12);
  for (size_t d = 0; d < lengths.size(); ++d) {
    lengths[d] =
        static_cast<int64_t>((random.Bits(2 * d + 2) % longest) >> (random.Bits(2 * d + 3) % 8));
  }
  return lengths;
}

// Tokens that are all different, and targets and positions that tell where they are from.
PackedBatch NumberedBatch(const std::vector<int64_t>& lengths) {
  PackedBatch batch;
  batch.cu_seqlens = CuSeqlens(lengths);
  for (const int64_t length : lengths) {
    for (int64_t i = 0; i < length; ++i) {
      batch.positions.push_back(i);
      batch.tokens.push_back(static_cast<int32_t>(batch.tokens.size()));
      batch.targets.push_back(batch.tokens.back() + 100000);
    }
  }
  return batch;
}

TEST(SequenceLayout, SplitsByTable) {
  const struct {
    SequenceSplit split;
    std::vector<int64_t> lengths;
    std::vector<Pieces> expected;  // by rank
  } cases[] = {
      {SequenceSplit::kContiguous, {8}, {{{0, 0, 4}}, {{0, 4, 4}}}},
      {SequenceSplit::kContiguous, {3, 4}, {{{0, 0, 3}, {1, 0, 1}}, {{1, 1, 3}}}},
      {SequenceSplit::kContiguous, {0, 1, 0, 1, 0}, {{{1, 0, 1}}, {{3, 0, 1}}}},
      {SequenceSplit::kContiguous, {1}, {{{0, 0, 1}}, {}, {}}},
      {SequenceSplit::kContiguous, {}, {{}, {}}},
      {SequenceSplit::kZigzag, {8}, {{{0, 0, 2}, {0, 6, 2}}, {{0, 2, 4}}}},
      {SequenceSplit::kZigzag,
       {5, 5},
       {{{0, 0, 2}, {0, 4, 1}, {1, 0, 1}, {1, 4, 1}}, {{0, 2, 2}, {1, 1, 3}}}},
      {SequenceSplit::kZigzag, {7}, {{{0, 0, 2}, {0, 5, 2}}, {{0, 2, 3}}}},
      {SequenceSplit::kZigzag, {1, 1, 1}, {{{0, 0, 1}, {2, 0, 1}}, {{1, 0, 1}}}},
      {SequenceSplit::kZigzag, {9, 0, 4}, {{{0, 0, 9}, {2, 0, 4}}}},
      {SequenceSplit::kZigzag, {1}, {{{0, 0, 1}}, {}, {}}},
      {SequenceSplit::kZigzag, {0, 0}, {{}, {}}},
      {SequenceSplit::kZigzag, {}, {{}}},
      {SequenceSplit::kHalves, {8}, {{{0, 0, 2}, {0, 4, 2}}, {{0, 2, 2}, {0, 6, 2}}}},
      // 3 + 2 tokens: rank 1's second half is the longer one.
      {SequenceSplit::kHalves, {4, 1}, {{{0, 0, 2}, {0, 3, 1}}, {{0, 2, 1}, {1, 0, 1}}}},
      {SequenceSplit::kHalves, {9, 0, 4}, {{{0, 0, 9}, {2, 0, 4}}}},
      {SequenceSplit::kHalves, {1}, {{{0, 0, 1}}, {}, {}}},
      {SequenceSplit::kHalves, {}, {{}, {}}},
  };
  for (size_t c = 0; c < std::size(cases); ++c) {
    const auto layout = SequenceLayout::Make(cases[c].split, CuSeqlens(cases[c].lengths),
                                             static_cast<int>(cases[c].expected.size()));
    for (int rank = 0; rank < layout.num_ranks(); ++rank) {
      EXPECT_EQ(layout.pieces(rank), cases[c].expected[static_cast<size_t>(rank)])
          << "case " << c << ", rank " << rank;
    }
  }
}

TEST(SequenceLayout, HoldsEveryTokenOnceInOrderAndEvenly) {
  for (uint64_t mix = 0; mix < 150; ++mix) {
    const std::vector<int64_t> lengths = RandomLengths(mix);
    const std::vector<int64_t> cu = CuSeqlens(lengths);
    for (const SequenceSplit split : kSplits) {
      for (const int ranks : {1, 2, 3, 4, 7, 16}) {
        const auto layout = SequenceLayout::Make(split, cu, ranks);
        ASSERT_EQ(layout.num_ranks(), ranks);
        ASSERT_EQ(layout.num_tokens(), cu.back());
        ASSERT_EQ(layout.cu_seqlens(), cu);
        std::vector<int> times(static_cast<size_t>(cu.back()), 0);
        for (int rank = 0; rank < ranks; ++rank) {
          int64_t rows = 0, document = -1, end = 0;
          for (const SequencePiece& piece : layout.pieces(rank)) {
            ASSERT_GE(piece.length, 1);
            ASSERT_GE(piece.document, document);
            // In one document a token of others lies between: what touches is one piece.
            ASSERT_TRUE(piece.document > document || piece.begin > end);
            document = piece.document;
            end = piece.begin + piece.length;
            ASSERT_GE(piece.begin, 0);
            ASSERT_LE(end, lengths[static_cast<size_t>(document)]);
            for (int64_t i = piece.begin; i < end; ++i) {
              ++times[static_cast<size_t>(cu[static_cast<size_t>(document)] + i)];
            }
            rows += piece.length;
          }
          ASSERT_EQ(rows, layout.rows()[static_cast<size_t>(rank)]);
        }
        ASSERT_EQ(std::count(times.begin(), times.end(), 1), cu.back());
        const auto [least, most] = std::minmax_element(layout.rows().begin(), layout.rows().end());
        ASSERT_LE(*most - *least, 1) << "mix " << mix << ", " << ranks << " ranks";
      }
    }
  }
}

TEST(SequenceLayout, HalvesComeOneAfterTheOther) {
  for (uint64_t mix = 0; mix < 100; ++mix) {
    const std::vector<int64_t> cu = CuSeqlens(RandomLengths(mix));
    const int64_t half = FirstHalf(cu.back());
    for (const int ranks : {1, 2, 3, 7}) {
      const auto layout = SequenceLayout::Make(SequenceSplit::kHalves, cu, ranks);
      int64_t sum = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const int64_t first = RowsOfFirstHalf(layout, rank);
        sum += first;
        ASSERT_LE(std::abs(first - half / ranks), 1);
        int64_t row = 0;
        for (const SequencePiece& piece : layout.pieces(rank)) {
          for (int64_t i = 0; i < piece.length; ++i, ++row) {
            const int64_t token = cu[static_cast<size_t>(piece.document)] + piece.begin + i;
            ASSERT_EQ(token < half, row < first);
          }
        }
      }
      ASSERT_EQ(sum, half);
    }
  }
}

// Each rank's rows of a document are those of its two chunks, whose sizes differ by at most 1.
TEST(SequenceLayout, ZigzagGivesEveryRankAnEarlyAndALateChunk) {
  for (uint64_t mix = 0; mix < 60; ++mix) {
    const std::vector<int64_t> lengths = RandomLengths(mix);
    for (const int ranks : {1, 2, 3, 5, 8}) {
      const auto layout = SequenceLayout::Make(SequenceSplit::kZigzag, CuSeqlens(lengths), ranks);
      for (int64_t d = 0; d < static_cast<int64_t>(lengths.size()); ++d) {
        const int64_t base = lengths[static_cast<size_t>(d)] / (2 * ranks);
        for (int rank = 0; rank < ranks; ++rank) {
          std::vector<int64_t> held;
          for (const SequencePiece& piece : layout.pieces(rank)) {
            for (int64_t i = 0; i < piece.length && piece.document == d; ++i) {
              held.push_back(piece.begin + i);
            }
          }
          ASSERT_GE(static_cast<int64_t>(held.size()), 2 * base);
          ASSERT_LE(static_cast<int64_t>(held.size()), 2 * base + 2);
          // r chunks before the early one, as many after the late one.
          const int64_t length = lengths[static_cast<size_t>(d)];
          for (int64_t i = 0; i < base; ++i) {
            const int64_t early = held[static_cast<size_t>(i)];
            const int64_t late = length - 1 - held[held.size() - 1 - static_cast<size_t>(i)];
            ASSERT_GE(early, rank * base + i);
            ASSERT_LE(early, rank * (base + 1) + i);
            ASSERT_GE(late, rank * base + i);
            ASSERT_LE(late, rank * (base + 1) + i);
          }
        }
      }
    }
  }
}

TEST(SequenceLayout, ZigzagSharesCausalAttentionEvenly) {
  // Exactly, where 2 R divides the length.
  const auto even = SequenceLayout::Make(SequenceSplit::kZigzag, {{0, 64, 64 + 8 * 13}}, 4);
  for (int rank = 1; rank < 4; ++rank) EXPECT_EQ(CausalPairs(even, rank), CausalPairs(even, 0));
  EXPECT_EQ(4 * CausalPairs(even, 0), 64 * 65 / 2 + 104 * 105 / 2);
  // The stream's last part has almost 7 times the pairs of the first.
  const auto uneven = SequenceLayout::Make(SequenceSplit::kContiguous, {{0, 64}}, 4);
  EXPECT_EQ(CausalPairs(uneven, 0), 16 * 17 / 2);
  EXPECT_EQ(CausalPairs(uneven, 3), 64 * 65 / 2 - 48 * 49 / 2);

  // Not exactly otherwise, but a rank is never ahead by more than a few of the longest rows.
  for (uint64_t mix = 0; mix < 300; ++mix) {
    const std::vector<int64_t> lengths = RandomLengths(mix);
    const int64_t longest = lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
    for (const int ranks : {1, 2, 3, 4, 7, 16}) {
      const auto layout = SequenceLayout::Make(SequenceSplit::kZigzag, CuSeqlens(lengths), ranks);
      int64_t all = 0, most = 0, least = INT64_MAX;
      for (int rank = 0; rank < ranks; ++rank) {
        const int64_t pairs = CausalPairs(layout, rank);
        all += pairs;
        most = std::max(most, pairs);
        least = std::min(least, pairs);
      }
      int64_t expected = 0;
      for (const int64_t length : lengths) expected += length * (length + 1) / 2;
      ASSERT_EQ(all, expected);
      ASSERT_LE(most - least, 3 * longest) << "mix " << mix << ", " << ranks << " ranks";
    }
  }
}

// Documents of 1 to 2 R - 1 tokens are all remainder.
TEST(SequenceLayout, ZigzagBalancesManyShortDocuments) {
  for (const int ranks : {2, 3, 8, 16}) {
    for (int64_t length = 1; length < 2 * ranks; ++length) {
      const auto layout = SequenceLayout::Make(
          SequenceSplit::kZigzag, CuSeqlens(std::vector<int64_t>(1000, length)), ranks);
      int64_t most = 0, least = INT64_MAX;
      for (int rank = 0; rank < ranks; ++rank) {
        most = std::max(most, CausalPairs(layout, rank));
        least = std::min(least, CausalPairs(layout, rank));
      }
      // A rank that always had the latest token would be 500 lengths ahead.
      EXPECT_LE(most - least, 6 * length) << ranks << " ranks, length " << length;
    }
  }
}

TEST(SequenceLayout, RangesOfRowsByTable) {
  const auto zigzag = SequenceLayout::Make(SequenceSplit::kZigzag, {{0, 8, 9}}, 2);
  EXPECT_EQ(AsTuples(RankOrderToPacked(zigzag)), (Ranges{{0, 0, 2}, {2, 6, 3}, {5, 2, 4}}));
  EXPECT_EQ(AsTuples(PackedToRankOrder(zigzag)), (Ranges{{0, 0, 2}, {2, 5, 4}, {6, 2, 3}}));
  // The stream of all ranks is the packed batch itself.
  const auto contiguous = SequenceLayout::Make(SequenceSplit::kContiguous, {{0, 8, 9, 21}}, 4);
  EXPECT_EQ(AsTuples(RankOrderToPacked(contiguous)), (Ranges{{0, 0, 21}}));
  const auto empty = SequenceLayout::Make(SequenceSplit::kZigzag, {{0}}, 4);
  EXPECT_TRUE(RankOrderToPacked(empty).empty());
  EXPECT_TRUE(PackedToRankOrder(empty).empty());
}

TEST(SequenceLayout, ShardsInRankOrderComeBackAsTheBatch) {
  for (uint64_t mix = 0; mix < 60; ++mix) {
    const PackedBatch batch = NumberedBatch(RandomLengths(mix));
    for (const SequenceSplit split : kSplits) {
      for (const int ranks : {1, 2, 5, 8}) {
        const auto layout = SequenceLayout::Make(split, batch.cu_seqlens, ranks);
        std::vector<int32_t> tokens;  // of all ranks, in rank order
        for (int rank = 0; rank < ranks; ++rank) {
          const PackedBatch shard = TakeShard(batch, layout, rank);
          ASSERT_EQ(shard.num_tokens(), layout.rows()[static_cast<size_t>(rank)]);
          ASSERT_EQ(shard.num_pieces(), static_cast<int64_t>(layout.pieces(rank).size()));
          for (size_t i = 0; i < shard.tokens.size(); ++i) {
            const size_t token = static_cast<size_t>(shard.tokens[i]);
            ASSERT_EQ(shard.targets[i], batch.targets[token]);
            ASSERT_EQ(shard.positions[i], batch.positions[token]);
          }
          for (size_t p = 0; p < layout.pieces(rank).size(); ++p) {
            const SequencePiece& piece = layout.pieces(rank)[p];
            ASSERT_EQ(shard.cu_seqlens[p + 1] - shard.cu_seqlens[p], piece.length);
            ASSERT_EQ(shard.positions[static_cast<size_t>(shard.cu_seqlens[p])], piece.begin);
          }
          tokens.insert(tokens.end(), shard.tokens.begin(), shard.tokens.end());
        }
        std::vector<int32_t> packed(tokens.size(), -1), again(tokens.size(), -1);
        const auto move_rows = [](const std::vector<RowRange>& ranges, const auto& from, auto& to) {
          for (const RowRange& range : ranges) {
            std::copy_n(from.begin() + range.from, range.count, to.begin() + range.to);
          }
        };
        move_rows(RankOrderToPacked(layout), tokens, packed);
        ASSERT_EQ(packed, batch.tokens);
        move_rows(PackedToRankOrder(layout), packed, again);
        ASSERT_EQ(again, tokens);
      }
    }
  }
}

}  // namespace
}  // namespace evenkeel
