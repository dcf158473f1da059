#include "runtime/data/text_source.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/log.h"
#include "runtime/base/status_macros.h"
#include "runtime/data/data_error.h"
#include "runtime/data/jsonl_document.h"
#include "runtime/data/utf8.h"

namespace evenkeel {
namespace {

constexpr size_t kBlockBytes = 1 << 20;
constexpr int64_t kLoggedBadDocuments = 10;

// Says what is wrong with the text of a file, or returns "".
std::string WhatIsWrong(const std::string& text) {
  if (absl::StartsWith(text, "\x1F\x8B")) return "is a gzip file; unpack it first";
  if (const size_t nul = text.find('\0'); nul != std::string::npos) {
    return absl::StrCat("is not a text file: it has a NUL at byte ", nul + 1);
  }
  if (const int64_t bad = FindInvalidUtf8(text); bad >= 0) {
    return absl::StrCat("is not UTF-8 at byte ", bad + 1);
  }
  return "";
}

void RemoveByteOrderMark(std::string* text) {
  if (absl::StartsWith(*text, "\xEF\xBB\xBF")) text->erase(0, 3);
}

bool IsBlank(const std::string& line) {
  return line.find_first_not_of(" \t\r") == std::string::npos;
}

}  // namespace

absl::Status TextSource::OpenNextFile() {
  const std::string& path = options_.paths[next_path_++];
  EK_ASSIGN_OR_RETURN(file_, InputFile::Open(path));
  is_jsonl_ = absl::EndsWith(path, ".jsonl") || absl::EndsWith(path, ".ndjson");
  line_ = 0;
  block_.clear();
  block_position_ = 0;
  return absl::OkStatus();
}

// Makes sure that the block has a byte left; returns false at the end of the file.
absl::StatusOr<bool> TextSource::Fill() {
  if (block_position_ < block_.size()) return true;
  block_.resize(kBlockBytes);
  block_position_ = 0;
  EK_ASSIGN_OR_RETURN(const int64_t got, file_->ReadNext(block_.data(), kBlockBytes));
  block_.resize(static_cast<size_t>(got));
  bytes_read_ += got;
  return got > 0;
}

// Reads to the end of the file or of the line, which is consumed and not returned. Of what is too
// long only the start is kept. Returns false if there was nothing, not even an empty line.
absl::StatusOr<bool> TextSource::ReadUpTo(bool whole_file, std::string* out, bool* too_long) {
  out->clear();
  *too_long = false;
  bool any = false;
  for (;;) {
    EK_ASSIGN_OR_RETURN(const bool more, Fill());
    if (!more) return any;
    any = true;
    const size_t newline = whole_file ? std::string::npos : block_.find('\n', block_position_);
    const size_t end = std::min(newline, block_.size());
    const size_t room = static_cast<size_t>(options_.max_document_bytes) - out->size();
    *too_long |= end - block_position_ > room;
    out->append(block_, block_position_, std::min(room, end - block_position_));
    block_position_ = end;
    if (newline != std::string::npos) {
      ++block_position_;
      return true;
    }
  }
}

absl::Status TextSource::CountBad(const std::string& origin, const std::string& what) {
  const std::string message = absl::StrCat(origin, ": ", what);
  if (++num_bad_ > options_.skip_bad) {
    if (options_.skip_bad == 0) return DataError(message);
    return DataError(absl::StrCat(message, " (the ", options_.skip_bad,
                                  " bad documents that may be skipped are used up)"));
  }
  if (num_bad_ <= kLoggedBadDocuments) LogWarning(absl::StrCat(message, "; skipped"));
  return absl::OkStatus();
}

absl::StatusOr<bool> TextSource::Next(TextDocument* document) {
  for (;;) {
    if (!file_.has_value()) {
      if (next_path_ == options_.paths.size()) return false;
      EK_RETURN_IF_ERROR(OpenNextFile());
      if (!is_jsonl_) {
        // A file of no bytes is an empty document; a JSONL file without lines has none at all.
        bool too_long;
        EK_RETURN_IF_ERROR(ReadUpTo(true, &document->text, &too_long).status());
        document->origin = file_->path();
        file_.reset();
        RemoveByteOrderMark(&document->text);
        const std::string wrong =
            too_long ? absl::StrCat("is larger than ", options_.max_document_bytes, " bytes")
                     : WhatIsWrong(document->text);
        if (!wrong.empty()) {
          EK_RETURN_IF_ERROR(CountBad(document->origin, wrong));
        } else if (document->text.empty()) {
          ++num_empty_;
        } else {
          return true;
        }
        continue;
      }
    }
    std::string line;
    bool too_long;
    EK_ASSIGN_OR_RETURN(const bool more, ReadUpTo(false, &line, &too_long));
    if (!more) {
      file_.reset();
      continue;
    }
    if (++line_ == 1) RemoveByteOrderMark(&line);
    if (!too_long && IsBlank(line)) continue;
    document->origin = absl::StrCat(file_->path(), ":", line_);
    if (too_long) {
      EK_RETURN_IF_ERROR(CountBad(
          document->origin,
          absl::StrCat("the line is longer than ", options_.max_document_bytes, " bytes")));
      continue;
    }
    absl::StatusOr<std::string> text = ParseJsonlDocument(line, options_.jsonl_key);
    if (!text.ok()) {
      EK_RETURN_IF_ERROR(
          CountBad(document->origin, absl::StrCat("the line ", text.status().message())));
    } else if (text->empty()) {
      ++num_empty_;
    } else {
      document->text = *std::move(text);
      return true;
    }
  }
}

}  // namespace evenkeel
