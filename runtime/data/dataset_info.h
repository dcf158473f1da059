// What a data set's tokens mean: PREFIX.dataset.json, written beside PREFIX.bin and PREFIX.idx.
// Other programs that read Megatron's files ignore it; data sets they wrote have none.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace evenkeel {

struct DatasetInfo {
  std::string tokenizer;             // "bytes", or what another program called its own
  int64_t vocab_size = 0;            // every token is below it
  int32_t eod_id = -1;               // the token that ends each document; -1 if there is none
  std::vector<std::string> sources;  // the inputs as they were given, patterns unexpanded
  int64_t num_files = 0;             // how many files they named
  int64_t num_documents = 0;
  int64_t num_tokens = 0;

  bool operator==(const DatasetInfo&) const = default;
};

std::string DatasetInfoPath(const std::string& prefix);

// Renders the file's text.
std::string FormatDatasetInfo(const DatasetInfo& info);

// Reads and checks PREFIX.dataset.json. kNotFound if there is none.
absl::StatusOr<DatasetInfo> ReadDatasetInfo(const std::string& prefix);

}  // namespace evenkeel
