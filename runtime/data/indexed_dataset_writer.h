// Writes a data set in the format of indexed_dataset.h, readable by Megatron: one sequence a
// document. Memory does not grow with the data set.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/data/dataset_info.h"
#include "runtime/data/indexed_dataset.h"
#include "runtime/data/staged_file.h"

namespace evenkeel {

// Nothing appears under PREFIX before Finish; a writer that goes without it leaves nothing behind.
class IndexedDatasetWriter {
 public:
  // The files' token type follows from `vocab_size` (TokenTypeFor).
  static absl::StatusOr<IndexedDatasetWriter> Create(const std::string& prefix, int64_t vocab_size);

  // Adds tokens to the open document; each must be in [0, vocab_size). A document may come in
  // parts.
  absl::Status AppendTokens(absl::Span<const int32_t> tokens);

  // Ends the open document. One without tokens is kept, as a document of length 0.
  absl::Status EndDocument();

  int64_t num_documents() const { return num_documents_; }
  int64_t num_tokens() const { return num_tokens_; }

  // Completes the files, syncs them to the disk and gives them their names, PREFIX.bin and
  // PREFIX.dataset.json before PREFIX.idx: an index is never there without its tokens. A data set
  // of that name is replaced. `info`'s vocab_size and counts are filled in by the writer.
  absl::Status Finish(DatasetInfo info);

 private:
  IndexedDatasetWriter(std::string prefix, int64_t vocab_size, StagedFile bin, StagedFile idx)
      : prefix_(std::move(prefix)),
        vocab_size_(vocab_size),
        type_(TokenTypeFor(vocab_size)),
        bin_(std::move(bin)),
        idx_(std::move(idx)) {}

  absl::Status AppendPointers();

  std::string prefix_;
  int64_t vocab_size_;
  TokenType type_;
  StagedFile bin_;
  StagedFile idx_;  // header space, then the lengths; pointers and boundaries follow in Finish
  int64_t num_documents_ = 0;
  int64_t num_tokens_ = 0;
  int64_t open_tokens_ = 0;  // of the open document
};

}  // namespace evenkeel
