#include "scheduler/document_placement.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace evenkeel {

std::vector<std::vector<int64_t>> CutEvenly(absl::Span<const int64_t> documents, int64_t parts) {
  const int64_t tokens = std::accumulate(documents.begin(), documents.end(), int64_t{0});
  std::vector<std::vector<int64_t>> cut(static_cast<size_t>(parts));
  int64_t at = 0, part = 0;
  for (int64_t length : documents) {
    for (const int64_t end = at + length; at < end;) {
      while (tokens * (part + 1) / parts <= at) ++part;
      const int64_t until = std::min(end, tokens * (part + 1) / parts);
      cut[static_cast<size_t>(part)].push_back(until - at);
      at = until;
    }
  }
  return cut;
}

AttentionPool PlaceDocuments(absl::Span<const int64_t> lengths, int num_ranks,
                             int64_t tokens_per_rank, DocumentPlacement placement) {
  AttentionPool pool;
  pool.num_ranks = num_ranks;
  pool.speed.assign(static_cast<size_t>(num_ranks), 1);
  int owner = 0;
  int64_t row = 0;  // of the owner
  for (const int64_t length : lengths) {
    PooledDocument document;
    document.length = length;
    document.first_piece = static_cast<int32_t>(pool.pieces.size());
    std::vector<DocumentPiece> tails;
    for (int64_t begin = 0, end = length; begin < end;) {
      const int64_t take = std::min(end - begin, tokens_per_rank - row);
      // What is left of a document stays together.
      const bool splits = placement == DocumentPlacement::kHeadTail && take < end - begin;
      const int64_t tail = splits ? take / 2 : 0, head = take - tail;
      pool.pieces.push_back({owner, begin, head, row});
      if (tail > 0) tails.push_back({owner, end - tail, tail, row + head});
      begin += head;
      end -= tail;
      row += take;
      if (row == tokens_per_rank) {
        ++owner;
        row = 0;
      }
    }
    pool.pieces.insert(pool.pieces.end(), tails.rbegin(), tails.rend());
    document.num_pieces = static_cast<int32_t>(pool.pieces.size()) - document.first_piece;
    pool.documents.push_back(document);
  }
  return pool;
}

}  // namespace evenkeel
