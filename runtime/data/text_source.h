// The documents of a corpus, one after the other: a text file is one document, a line of a JSONL
// file is one document. Only the document at hand is in memory.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/data/input_file.h"

namespace evenkeel {

struct TextSourceOptions {
  std::vector<std::string>
      paths;  // as ExpandInputs returns them; names in .jsonl or .ndjson: JSONL
  std::string jsonl_key = "text";
  int64_t max_document_bytes = 256 << 20;  // of a text file, or of a JSONL line
  int64_t skip_bad = 0;                    // bad documents to pass over before giving up
};

struct TextDocument {
  std::string text;    // UTF-8 without NUL; never empty
  std::string origin;  // "file" or "file:line"
};

// A document is bad if it is not UTF-8, holds a raw NUL, is too large, or is a JSONL line that is
// not an object with a string under the key. A byte-order mark at the start of a file and the end
// of line (LF or CRLF) of a JSONL line do not belong to the text; blank JSONL lines are no
// documents. A file that cannot be read is an error, never skipped.
class TextSource {
 public:
  explicit TextSource(TextSourceOptions options) : options_(std::move(options)) {}

  // Moves to the next document that is neither bad nor empty. Returns false at the end of the
  // corpus. The error names the file and line of the bad document that was one too many.
  absl::StatusOr<bool> Next(TextDocument* document);

  int64_t num_bad() const { return num_bad_; }
  int64_t num_empty() const { return num_empty_; }
  int64_t bytes_read() const { return bytes_read_; }

 private:
  absl::Status OpenNextFile();
  absl::StatusOr<bool> Fill();
  absl::StatusOr<bool> ReadUpTo(bool whole_file, std::string* out, bool* too_long);
  absl::Status CountBad(const std::string& origin, const std::string& what);

  TextSourceOptions options_;
  size_t next_path_ = 0;
  std::optional<InputFile> file_;
  bool is_jsonl_ = false;
  int64_t line_ = 0;  // of the current file, from 1
  std::string block_;
  size_t block_position_ = 0;
  int64_t num_bad_ = 0;
  int64_t num_empty_ = 0;
  int64_t bytes_read_ = 0;
};

}  // namespace evenkeel
