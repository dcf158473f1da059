#include "runtime/data/dataset_build.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "runtime/base/log.h"
#include "runtime/base/philox.h"
#include "runtime/base/status_macros.h"
#include "runtime/data/byte_tokenizer.h"
#include "runtime/data/data_error.h"
#include "runtime/data/indexed_dataset_writer.h"
#include "runtime/data/input_paths.h"
#include "runtime/data/text_source.h"

namespace evenkeel {
namespace {

constexpr uint64_t kSplitStream = 0x53504C4954;  // "SPLIT"
constexpr int64_t kProgressBytes = 4 << 20;
constexpr size_t kEncodeBytes = 1 << 16;

absl::Status CheckOptions(const DatasetBuildOptions& options) {
  const auto usage = [](const std::string& message) { return absl::InvalidArgumentError(message); };
  if (options.output_prefix.empty() || options.output_prefix.back() == '/') {
    return usage("the output prefix needs a name, e.g. data/wiki for data/wiki.bin");
  }
  if (!(options.validation_fraction >= 0 && options.validation_fraction < 1)) {
    return usage(absl::StrCat("the validation fraction is ", options.validation_fraction,
                              "; it must be in [0, 1)"));
  }
  if (options.min_tokens < 1 || options.max_tokens < options.min_tokens) {
    return usage(absl::StrCat("the least and most tokens of a document are ", options.min_tokens,
                              " and ", options.max_tokens, "; they must rise from 1"));
  }
  if (options.skip_bad < 0 || options.max_document_bytes < 1) {
    return usage("the bad documents to skip and the most bytes of a document must not be negative");
  }
  return absl::OkStatus();
}

int64_t TotalBytes(const std::vector<std::string>& paths) {
  int64_t total = 0;
  for (const std::string& path : paths) {
    struct stat info;
    if (stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode)) total += info.st_size;
  }
  return total;
}

// Encodes in parts: the tokens of a document take four times the memory of its text.
absl::Status AppendDocument(const std::string& text, IndexedDatasetWriter* writer) {
  for (size_t begin = 0; begin < text.size(); begin += kEncodeBytes) {
    EK_RETURN_IF_ERROR(
        writer->AppendTokens(EncodeBytes(absl::string_view(text).substr(begin, kEncodeBytes))));
  }
  EK_RETURN_IF_ERROR(writer->AppendTokens({kByteEod}));
  return writer->EndDocument();
}

}  // namespace

std::string ValidationPrefix(const std::string& prefix) {
  return prefix + "_valid";
}

bool IsValidationDocument(uint64_t seed, int64_t document, double fraction) {
  return Philox(seed, kSplitStream).Uniform(static_cast<uint64_t>(document)) < fraction;
}

absl::StatusOr<DatasetBuildSummary> BuildDataset(
    const DatasetBuildOptions& options,
    const std::function<void(const DatasetBuildProgress&)>& progress) {
  EK_RETURN_IF_ERROR(CheckOptions(options));
  EK_ASSIGN_OR_RETURN(const std::vector<std::string> paths, ExpandInputs(options.inputs));
  const std::string& prefix = options.output_prefix;
  const std::string valid_prefix = ValidationPrefix(prefix);
  EK_ASSIGN_OR_RETURN(IndexedDatasetWriter train,
                      IndexedDatasetWriter::Create(prefix, kByteVocabSize));
  std::optional<IndexedDatasetWriter> valid;
  if (options.validation_fraction > 0) {
    EK_ASSIGN_OR_RETURN(valid, IndexedDatasetWriter::Create(valid_prefix, kByteVocabSize));
  } else if (access(DatasetIdxPath(valid_prefix).c_str(), F_OK) == 0) {
    LogWarning(absl::StrCat(valid_prefix,
                            ".idx is there from another build and stays; its documents ",
                            "may be in the new ", prefix, ".idx as well"));
  }

  DatasetBuildSummary summary;
  summary.num_files = static_cast<int64_t>(paths.size());
  TextSource source({.paths = paths,
                     .jsonl_key = options.jsonl_key,
                     .max_document_bytes = options.max_document_bytes,
                     .skip_bad = options.skip_bad});
  DatasetBuildProgress now;
  now.bytes_total = TotalBytes(paths);
  int64_t next_report = kProgressBytes;
  TextDocument document;
  for (int64_t number = 0;; ++number) {
    EK_ASSIGN_OR_RETURN(const bool more, source.Next(&document));
    if (!more) break;
    const int64_t tokens = static_cast<int64_t>(document.text.size()) + 1;
    if (tokens < options.min_tokens) {
      ++summary.short_documents;
    } else if (tokens > options.max_tokens) {
      ++summary.long_documents;
    } else {
      const bool to_valid = IsValidationDocument(options.seed, number, options.validation_fraction);
      EK_RETURN_IF_ERROR(AppendDocument(document.text, to_valid ? &*valid : &train));
      ++now.num_documents;
      now.num_tokens += tokens;
    }
    now.bytes_read = source.bytes_read();
    if (progress && now.bytes_read >= next_report) {
      progress(now);
      next_report = now.bytes_read + kProgressBytes;
    }
  }
  now.bytes_read = source.bytes_read();
  if (progress) progress(now);

  summary.train_documents = train.num_documents();
  summary.train_tokens = train.num_tokens();
  summary.empty_documents = source.num_empty();
  summary.bad_documents = source.num_bad();
  summary.bytes_read = source.bytes_read();
  if (valid.has_value()) {
    summary.valid_documents = valid->num_documents();
    summary.valid_tokens = valid->num_tokens();
  }
  if (summary.train_documents == 0 || (valid.has_value() && summary.valid_documents == 0)) {
    return DataError(absl::StrCat(
        prefix, ": of ", now.num_documents, " documents in ", paths.size(), " files, ",
        summary.train_documents, " would be for training and ", summary.valid_documents,
        " for validation; there were ", summary.empty_documents, " empty, ",
        summary.short_documents, " too short, ", summary.long_documents, " too long and ",
        summary.bad_documents, " bad ones besides. Add documents",
        valid.has_value() ? " or change the fraction" : ""));
  }
  const DatasetInfo info = {.tokenizer = kByteTokenizerName,
                            .eod_id = kByteEod,
                            .sources = options.inputs,
                            .num_files = summary.num_files};
  if (valid.has_value()) EK_RETURN_IF_ERROR(valid->Finish(info));
  EK_RETURN_IF_ERROR(train.Finish(info));
  return summary;
}

}  // namespace evenkeel
