#include "runtime/data/sample_reader.h"

#include <vector>

#include "runtime/base/status_macros.h"

namespace evenkeel {

absl::Status AppendSample(const IndexedDataset& dataset, absl::Span<const Piece> pieces,
                          PackedBatch* batch) {
  std::vector<int32_t> tokens;
  for (const Piece& piece : pieces) {
    // One token more than the piece: the last one's target.
    tokens.assign(static_cast<size_t>(piece.length) + 1, kIgnoredTarget);
    const bool ends_document =
        piece.offset + piece.length == dataset.document_length(piece.document);
    EK_RETURN_IF_ERROR(
        dataset.ReadTokens(piece.document, piece.offset,
                           absl::MakeSpan(tokens.data(), tokens.size() - (ends_document ? 1 : 0))));
    const absl::Span<const int32_t> all = tokens;
    batch->AppendPiece(all.first(tokens.size() - 1), all.subspan(1));
  }
  return absl::OkStatus();
}

}  // namespace evenkeel
