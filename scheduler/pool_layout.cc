#include "scheduler/pool_layout.h"

#include <algorithm>
#include <utility>

namespace evenkeel {
namespace {

SequenceLayout LayoutOf(const PooledBatch& batch) {
  return SequenceLayout::Make(batch.split, batch.cu_seqlens, static_cast<int>(batch.ranks.size()));
}

NanoRows RowsIn(const PooledBatch& batch, const SequenceLayout& layout, int place) {
  const int64_t rows = layout.rows()[static_cast<size_t>(place)];
  const int64_t first =
      batch.split == SequenceSplit::kHalves ? RowsOfFirstHalf(layout, place) : rows;
  return {first, rows - first};
}

// The batch's pieces by (document, begin). Those of one rank alone go over the middle.
std::vector<std::pair<int64_t, DocumentPiece>> PiecesOf(const PooledBatch& batch) {
  const SequenceLayout layout = LayoutOf(batch);
  std::vector<std::pair<int64_t, DocumentPiece>> pieces;
  for (int rank = 0; rank < layout.num_ranks(); ++rank) {
    int64_t row = 0;
    for (const SequencePiece& piece : layout.pieces(rank)) {
      pieces.push_back({piece.document,
                        {batch.ranks[static_cast<size_t>(rank)], piece.begin, piece.length, row}});
      row += piece.length;
    }
  }
  std::sort(pieces.begin(), pieces.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first, a.second.begin) < std::pair(b.first, b.second.begin);
  });
  return pieces;
}

}  // namespace

NanoRows RowsOfNanos(const PooledBatch& batch, int place) {
  return RowsIn(batch, LayoutOf(batch), place);
}

std::vector<NanoRows> RowsOfNanos(absl::Span<const PooledBatch> batches, int num_ranks) {
  std::vector<NanoRows> rows(static_cast<size_t>(num_ranks), NanoRows{});
  for (const PooledBatch& batch : batches) {
    const SequenceLayout layout = LayoutOf(batch);
    for (size_t i = 0; i < batch.ranks.size(); ++i) {
      rows[static_cast<size_t>(batch.ranks[i])] = RowsIn(batch, layout, static_cast<int>(i));
    }
  }
  return rows;
}

void FillPool(absl::Span<const PooledBatch> batches, NanoBatch nano, AttentionPool& pool) {
  pool.documents.clear();
  pool.pieces.clear();
  for (const PooledBatch& batch : batches) {
    const auto pieces = PiecesOf(batch);
    const int64_t tokens = batch.cu_seqlens.back();
    const int64_t half = batch.split == SequenceSplit::kHalves ? FirstHalf(tokens) : tokens;
    for (size_t i = 0; i < pieces.size();) {
      const auto document = static_cast<size_t>(pieces[i].first);
      const int64_t begin = batch.cu_seqlens[document];
      const int64_t length = batch.cu_seqlens[document + 1] - begin;
      const int64_t in_first = std::clamp<int64_t>(half - begin, 0, length);
      const bool is_first = nano == NanoBatch::kFirst;
      PooledDocument entry;
      entry.length = is_first ? in_first : length;
      entry.q_begin = is_first ? 0 : in_first;
      entry.continues = is_first && in_first < length;
      entry.first_piece = static_cast<int32_t>(pool.pieces.size());
      const bool takes_part = entry.q_begin < entry.length;
      for (; i < pieces.size() && pieces[i].first == static_cast<int64_t>(document); ++i) {
        DocumentPiece piece = pieces[i].second;
        piece.length = std::min(piece.length, entry.length - piece.begin);
        if (!takes_part || piece.length <= 0) continue;
        pool.pieces.push_back(piece);
        ++entry.num_pieces;
      }
      if (takes_part) pool.documents.push_back(entry);
    }
  }
}

}  // namespace evenkeel
