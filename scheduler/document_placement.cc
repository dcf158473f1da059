#include "scheduler/document_placement.h"

#include <algorithm>
#include <vector>

namespace evenkeel {

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
