// `evenkeel data build`: from text to a data set of byte tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace evenkeel {

struct DatasetBuildOptions {
  std::vector<std::string> inputs;  // paths and patterns (ExpandInputs)
  std::string jsonl_key = "text";
  std::string output_prefix;
  double validation_fraction = 0;  // of the documents, in [0, 1); written to OUTPUT_PREFIX_valid
  uint64_t seed = 0;               // of the choice of validation documents
  int64_t min_tokens = 1;  // documents outside these bounds, end-of-document token included,
  int64_t max_tokens = std::numeric_limits<int32_t>::max();  // are left out whole
  int64_t max_document_bytes = 256 << 20;
  int64_t skip_bad = 0;
};

struct DatasetBuildProgress {
  int64_t num_documents = 0;
  int64_t num_tokens = 0;
  int64_t bytes_read = 0;
  int64_t bytes_total = 0;  // of the regular files among the inputs
};

struct DatasetBuildSummary {
  int64_t num_files = 0;
  int64_t train_documents = 0;
  int64_t train_tokens = 0;
  int64_t valid_documents = 0;
  int64_t valid_tokens = 0;
  int64_t empty_documents = 0;
  int64_t bad_documents = 0;
  int64_t short_documents = 0;  // below min_tokens
  int64_t long_documents = 0;   // above max_tokens
  int64_t bytes_read = 0;
};

std::string ValidationPrefix(const std::string& prefix);

// Whether document number `document` of a corpus, counted from 0 over all that are neither bad nor
// empty, goes to the validation set: a function of its arguments alone, so that the choice stays
// when documents are added behind it or other lengths are asked for.
bool IsValidationDocument(uint64_t seed, int64_t document, double fraction);

// Tokenizes the inputs with the byte tokenizer, ends each document with kByteEod, and writes the
// data set (or two). Calls `progress`, if given, every few megabytes and at the end. Fails, and
// writes nothing, if either data set would have no document.
absl::StatusOr<DatasetBuildSummary> BuildDataset(
    const DatasetBuildOptions& options,
    const std::function<void(const DatasetBuildProgress&)>& progress = nullptr);

}  // namespace evenkeel
