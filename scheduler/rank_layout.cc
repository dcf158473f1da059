#include "scheduler/rank_layout.h"

#include <algorithm>

#include "parallel/sequence_layout.h"

namespace evenkeel {

MicroBatchTokens CountTokens(const RankLayout& layout, absl::Span<const int64_t> document_lengths) {
  std::vector<int64_t> cu_seqlens = {0};
  for (const int64_t length : document_lengths) cu_seqlens.push_back(cu_seqlens.back() + length);
  MicroBatchTokens tokens;
  tokens.all = cu_seqlens.back();
  for (const int64_t length : document_lengths) tokens.longest = std::max(tokens.longest, length);
  if (layout.mesh.cp == 1) {
    tokens.rows = {tokens.all};
    return tokens;
  }
  const SequenceLayout sequences =
      SequenceLayout::Make(layout.context.split, cu_seqlens, layout.mesh.cp);
  tokens.rows = sequences.rows();
  for (int rank = 0; rank < layout.mesh.cp; ++rank) {
    int64_t before = 0, after = 0;
    for (const SequencePiece& piece : sequences.pieces(rank)) {
      const int64_t length = document_lengths[static_cast<size_t>(piece.document)];
      before += piece.begin > 0;
      after += piece.begin + piece.length < length;
    }
    tokens.all_pieces_before += before;
    tokens.all_pieces_after += after;
    if (rank != layout.coord.cp) continue;
    tokens.pieces_before = before;
    tokens.pieces_after = after;
  }
  return tokens;
}

int64_t ChunkRows(const RankLayout& layout, const MicroBatchTokens& tokens,
                  const ChunkLimits& chunks) {
  const int64_t mine = tokens.mine(layout);
  const bool is_halved = layout.context.split == SequenceSplit::kHalves;
  return chunks.RowsFor(is_halved ? FirstHalf(mine) : mine);
}

int64_t StreamRows(int64_t tokens, int64_t chunk_rows, int ranks, int rank) {
  const auto share = [&](int64_t rows) { return rows * (rank + 1) / ranks - rows * rank / ranks; };
  return tokens / chunk_rows * share(chunk_rows) + share(tokens % chunk_rows);
}

}  // namespace evenkeel
