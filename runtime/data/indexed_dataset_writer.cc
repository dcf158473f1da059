#include "runtime/data/indexed_dataset_writer.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/data/data_error.h"

namespace evenkeel {
namespace {

constexpr int64_t kHeaderBytes = 34;

std::string FormatHeader(TokenType type, int64_t num_documents) {
  std::string header("MMIDIDX\0\0", 9);
  const auto append = [&header](auto value) {
    header.append(reinterpret_cast<const char*>(&value), sizeof(value));
  };
  append(uint64_t{1});
  append(static_cast<uint8_t>(type));
  append(static_cast<uint64_t>(num_documents));
  append(static_cast<uint64_t>(num_documents) + 1);
  return header;
}

}  // namespace

absl::StatusOr<IndexedDatasetWriter> IndexedDatasetWriter::Create(const std::string& prefix,
                                                                  int64_t vocab_size) {
  EK_CHECK(vocab_size > 0 && vocab_size <= std::numeric_limits<int32_t>::max()) << vocab_size;
  EK_ASSIGN_OR_RETURN(StagedFile bin, StagedFile::Create(DatasetBinPath(prefix)));
  EK_ASSIGN_OR_RETURN(StagedFile idx, StagedFile::Create(DatasetIdxPath(prefix)));
  const std::string space(kHeaderBytes, '\0');
  EK_RETURN_IF_ERROR(idx.Append(space.data(), kHeaderBytes));
  return IndexedDatasetWriter(prefix, vocab_size, std::move(bin), std::move(idx));
}

absl::Status IndexedDatasetWriter::AppendTokens(absl::Span<const int32_t> tokens) {
  const int64_t count = static_cast<int64_t>(tokens.size());
  if (count > std::numeric_limits<int32_t>::max() - open_tokens_) {
    return DataError(absl::StrCat(DatasetBinPath(prefix_), ": document ", num_documents_,
                                  " is longer than the format's 2^31 - 1 tokens"));
  }
  for (const int32_t token : tokens) {
    if (token < 0 || token >= vocab_size_) {
      return DataError(absl::StrCat(DatasetBinPath(prefix_), ": document ", num_documents_,
                                    ": token ", token, " is not in [0, ", vocab_size_, ")"));
    }
  }
  if (type_ == TokenType::kI32) {
    EK_RETURN_IF_ERROR(bin_.Append(tokens.data(), count * 4));
  } else {
    const std::vector<uint16_t> narrow(tokens.begin(), tokens.end());
    EK_RETURN_IF_ERROR(bin_.Append(narrow.data(), count * 2));
  }
  open_tokens_ += count;
  return absl::OkStatus();
}

absl::Status IndexedDatasetWriter::EndDocument() {
  const int32_t length = static_cast<int32_t>(open_tokens_);
  EK_RETURN_IF_ERROR(idx_.Append(&length, sizeof(length)));
  num_tokens_ += open_tokens_;
  ++num_documents_;
  open_tokens_ = 0;
  return absl::OkStatus();
}

absl::Status IndexedDatasetWriter::AppendPointers() {
  const int64_t item = TokenBytes(type_);
  std::vector<int32_t> lengths(1 << 14);
  std::vector<int64_t> pointers(lengths.size());
  int64_t pointer = 0;
  for (int64_t begin = 0; begin < num_documents_;) {
    const int64_t n = std::min(static_cast<int64_t>(lengths.size()), num_documents_ - begin);
    EK_RETURN_IF_ERROR(idx_.ReadBack(kHeaderBytes + 4 * begin, lengths.data(), 4 * n));
    for (int64_t i = 0; i < n; ++i) {
      pointers[static_cast<size_t>(i)] = pointer;
      pointer += lengths[static_cast<size_t>(i)] * item;
    }
    EK_RETURN_IF_ERROR(idx_.Append(pointers.data(), 8 * n));
    begin += n;
  }
  return absl::OkStatus();
}

absl::Status IndexedDatasetWriter::Finish(DatasetInfo info) {
  EK_CHECK(open_tokens_ == 0) << "the last document was not ended";
  EK_RETURN_IF_ERROR(AppendPointers());
  for (int64_t i = 0; i <= num_documents_; ++i) {
    EK_RETURN_IF_ERROR(idx_.Append(&i, sizeof(i)));
  }
  const std::string header = FormatHeader(type_, num_documents_);
  EK_RETURN_IF_ERROR(idx_.Overwrite(0, header.data(), kHeaderBytes));

  info.vocab_size = vocab_size_;
  info.num_documents = num_documents_;
  info.num_tokens = num_tokens_;
  EK_ASSIGN_OR_RETURN(StagedFile sidecar, StagedFile::Create(DatasetInfoPath(prefix_)));
  const std::string text = FormatDatasetInfo(info);
  EK_RETURN_IF_ERROR(sidecar.Append(text.data(), static_cast<int64_t>(text.size())));

  for (StagedFile* file : {&bin_, &sidecar, &idx_}) EK_RETURN_IF_ERROR(file->Sync());
  // The old index goes first and the new one comes last: whoever opens PREFIX meanwhile finds
  // either no data set or a whole one, never an old index over new tokens.
  const std::string idx_path = DatasetIdxPath(prefix_);
  if (unlink(idx_path.c_str()) != 0 && errno != ENOENT) {
    return DataError(absl::StrCat(idx_path, ": cannot be replaced: ", std::strerror(errno)));
  }
  for (StagedFile* file : {&bin_, &sidecar, &idx_}) EK_RETURN_IF_ERROR(file->Publish());
  return SyncFolderOf(prefix_);
}

}  // namespace evenkeel
