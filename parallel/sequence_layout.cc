#include "parallel/sequence_layout.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "runtime/base/check.h"

namespace evenkeel {
namespace {

// The query at position i of its document sees i + 1 keys.
int64_t PairsOfPiece(const SequencePiece& piece) {
  return piece.length * (2 * piece.begin + piece.length + 1) / 2;
}

}  // namespace

SequenceLayout::SequenceLayout(absl::Span<const int64_t> cu_seqlens, int num_ranks)
    : cu_seqlens_(cu_seqlens.begin(), cu_seqlens.end()),
      pieces_(static_cast<size_t>(num_ranks)),
      rows_(static_cast<size_t>(num_ranks)) {}

SequenceLayout SequenceLayout::Make(SequenceSplit split, absl::Span<const int64_t> cu_seqlens,
                                    int num_ranks) {
  EK_CHECK(num_ranks >= 1) << num_ranks << " ranks";
  EK_CHECK(!cu_seqlens.empty() && cu_seqlens.front() == 0) << "cu_seqlens does not start with 0";
  EK_CHECK(std::is_sorted(cu_seqlens.begin(), cu_seqlens.end())) << "cu_seqlens falls";
  SequenceLayout layout(cu_seqlens, num_ranks);
  switch (split) {
    case SequenceSplit::kContiguous:
      layout.SplitContiguous();
      break;
    case SequenceSplit::kZigzag:
      layout.SplitZigzag();
      break;
    case SequenceSplit::kHalves:
      layout.SplitHalves();
      break;
  }
  return layout;
}

const std::vector<SequencePiece>& SequenceLayout::pieces(int rank) const {
  EK_CHECK(rank >= 0 && rank < num_ranks()) << "rank " << rank << " of " << num_ranks();
  return pieces_[static_cast<size_t>(rank)];
}

// Pieces of a rank come in ascending order.
void SequenceLayout::Append(int rank, SequencePiece piece) {
  if (piece.length == 0) return;
  std::vector<SequencePiece>& pieces = pieces_[static_cast<size_t>(rank)];
  rows_[static_cast<size_t>(rank)] += piece.length;
  if (!pieces.empty() && pieces.back().document == piece.document &&
      pieces.back().begin + pieces.back().length == piece.begin) {
    pieces.back().length += piece.length;
  } else {
    pieces.push_back(piece);
  }
}

void SequenceLayout::AppendStream(int rank, int64_t begin, int64_t end) {
  const auto after = std::upper_bound(cu_seqlens_.begin(), cu_seqlens_.end(), begin);
  for (auto document = static_cast<size_t>(after - cu_seqlens_.begin()) - 1; begin < end;
       ++document) {
    const int64_t until = std::min(end, cu_seqlens_[document + 1]);
    Append(rank, {static_cast<int64_t>(document), begin - cu_seqlens_[document], until - begin});
    begin = until;
  }
}

void SequenceLayout::SplitContiguous() {
  const int64_t base = num_tokens() / num_ranks(), longer = num_tokens() % num_ranks();
  int64_t next = 0;
  for (int rank = 0; rank < num_ranks(); ++rank) {
    const int64_t end = next + base + (rank < longer ? 1 : 0);
    AppendStream(rank, next, end);
    next = end;
  }
}

void SequenceLayout::SplitHalves() {
  const int64_t ranks = num_ranks(), half = FirstHalf(num_tokens());
  const int64_t begins[2] = {0, half}, sizes[2] = {half, num_tokens() - half};
  // Those that are one longer follow one another around the ranks, over both halves.
  const int64_t first_longer[2] = {0, half % ranks};
  for (int rank = 0; rank < ranks; ++rank) {
    for (int i = 0; i < 2; ++i) {
      const int64_t base = sizes[i] / ranks, longer = sizes[i] % ranks;
      const auto is_longer = [&](int64_t r) {
        return (r - first_longer[i] + ranks) % ranks < longer;
      };
      int64_t begin = begins[i] + base * rank;
      for (int64_t r = 0; r < rank; ++r) begin += is_longer(r);
      AppendStream(rank, begin, begin + base + (is_longer(rank) ? 1 : 0));
    }
  }
}

void SequenceLayout::SplitZigzag() {
  const int ranks = num_ranks(), chunks = 2 * ranks;
  std::vector<int64_t> held(rows_), pairs(rows_);  // tokens and causal pairs so far, by rank
  int64_t all_pairs = 0;
  std::vector<int> extra(rows_.size());  // left tokens a rank takes, one a chunk
  std::vector<int64_t> bounds(static_cast<size_t>(chunks) + 1);  // of the chunks, from 0
  for (size_t d = 0; d + 1 < cu_seqlens_.size(); ++d) {
    const int64_t length = cu_seqlens_[d + 1] - cu_seqlens_[d];
    const int64_t base = length / chunks;
    // Those with the fewest tokens first. If the ranks differ by at most 1 before, they do after:
    // with levels m and m + 1, the left tokens (fewer than 2 R) raise first all at m to m + 1, then
    // all to m + 2, where those from m have their two, and then some from m + 1 to m + 3.
    std::fill(extra.begin(), extra.end(), 0);
    int64_t level = *std::min_element(held.begin(), held.end());
    for (int64_t left = length % chunks; left > 0; ++level) {
      for (size_t r = 0; r < extra.size() && left > 0; ++r) {
        if (held[r] != level || extra[r] == 2) continue;
        ++held[r];
        ++extra[r];
        --left;
      }
    }
    // A rank that takes one token of the two it could take has the choice of its chunk. The later
    // one has more keys, so it is for those with few pairs so far: documents shorter than 2 R, all
    // of them left tokens, are balanced by this.
    for (int r = 0; r < ranks; ++r) {
      const size_t at = static_cast<size_t>(r);
      const bool late = pairs[at] < all_pairs / ranks;
      bounds[at + 1] = base + (extra[at] == 2 || (extra[at] == 1 && !late) ? 1 : 0);
      bounds[static_cast<size_t>(chunks - r)] =
          base + (extra[at] == 2 || (extra[at] == 1 && late) ? 1 : 0);
      held[at] += 2 * base;
    }
    std::partial_sum(bounds.begin(), bounds.end(), bounds.begin());
    for (int r = 0; r < ranks; ++r) {
      for (const int chunk : {r, chunks - 1 - r}) {
        const int64_t begin = bounds[static_cast<size_t>(chunk)];
        const SequencePiece piece = {static_cast<int64_t>(d), begin,
                                     bounds[static_cast<size_t>(chunk) + 1] - begin};
        Append(r, piece);
        pairs[static_cast<size_t>(r)] += PairsOfPiece(piece);
      }
    }
    all_pairs += PairsOfPiece({.begin = 0, .length = length});
  }
}

int64_t RowsOfFirstHalf(const SequenceLayout& layout, int rank) {
  const int64_t half = FirstHalf(layout.num_tokens());
  int64_t rows = 0;
  for (const SequencePiece& piece : layout.pieces(rank)) {
    const int64_t begin = layout.cu_seqlens()[static_cast<size_t>(piece.document)] + piece.begin;
    rows += std::clamp<int64_t>(half - begin, 0, piece.length);
  }
  return rows;
}

std::vector<RowRange> RankOrderToPacked(const SequenceLayout& layout) {
  std::vector<RowRange> ranges;
  int64_t from = 0;
  for (int rank = 0; rank < layout.num_ranks(); ++rank) {
    for (const SequencePiece& piece : layout.pieces(rank)) {
      const int64_t to = layout.cu_seqlens()[static_cast<size_t>(piece.document)] + piece.begin;
      // What goes on in both orders is one range: fewer copies.
      if (!ranges.empty() && ranges.back().to + ranges.back().count == to) {
        ranges.back().count += piece.length;
      } else {
        ranges.push_back({from, to, piece.length});
      }
      from += piece.length;
    }
  }
  return ranges;
}

std::vector<RowRange> PackedToRankOrder(const SequenceLayout& layout) {
  std::vector<RowRange> ranges = RankOrderToPacked(layout);
  for (RowRange& range : ranges) std::swap(range.from, range.to);
  std::sort(ranges.begin(), ranges.end(),
            [](const RowRange& a, const RowRange& b) { return a.from < b.from; });
  return ranges;
}

PackedBatch TakeShard(const PackedBatch& batch, const SequenceLayout& layout, int rank) {
  EK_CHECK(batch.cu_seqlens == layout.cu_seqlens()) << "the batch has other documents";
  PackedBatch shard;
  for (const SequencePiece& piece : layout.pieces(rank)) {
    const auto first = layout.cu_seqlens()[static_cast<size_t>(piece.document)] + piece.begin;
    const auto append = [&](const auto& all, auto& part) {
      part.insert(part.end(), all.begin() + first, all.begin() + first + piece.length);
    };
    append(batch.tokens, shard.tokens);
    append(batch.targets, shard.targets);
    append(batch.positions, shard.positions);
    shard.cu_seqlens.push_back(shard.num_tokens());
  }
  return shard;
}

int64_t CausalPairs(const SequenceLayout& layout, int rank) {
  int64_t pairs = 0;
  for (const SequencePiece& piece : layout.pieces(rank)) pairs += PairsOfPiece(piece);
  return pairs;
}

}  // namespace evenkeel
