// From the pieces of a sample to its tokens and targets.
#pragma once

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/data/indexed_dataset.h"
#include "runtime/data/packed_batch.h"
#include "runtime/data/sample_order.h"

namespace evenkeel {

// Reads the pieces (of SampleOrder::Sample or SequentialOrder::Sample) and appends them to `batch`.
// The target of a token is the next token of its document, also where that lies beyond the piece;
// the last token of a document, its end-of-document token, has none. On an error `batch` holds the
// pieces before the one that failed.
absl::Status AppendSample(const IndexedDataset& dataset, absl::Span<const Piece> pieces,
                          PackedBatch* batch);

}  // namespace evenkeel
