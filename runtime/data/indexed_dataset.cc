#include "runtime/data/indexed_dataset.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/data/data_error.h"

namespace evenkeel {
namespace {

static_assert(std::endian::native == std::endian::little, "the files are little-endian");

constexpr char kMagic[9] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', '\0', '\0'};
constexpr int64_t kHeaderBytes = 34;

// The arrays start at 34 and 34 + 4S: never 8-byte aligned, so every value is copied out.
template <typename T>
T LoadAt(const std::string& bytes, int64_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

struct IndexHeader {
  TokenType type;
  int64_t num_sequences;
  int64_t num_boundaries;  // documents + 1
};

absl::StatusOr<IndexHeader> ParseHeader(const std::string& path, const std::string& index) {
  const int64_t size = static_cast<int64_t>(index.size());
  if (size < kHeaderBytes || std::memcmp(index.data(), kMagic, sizeof(kMagic)) != 0) {
    return DataError(absl::StrCat(path, ": is not a Megatron index (it does not start with MMIDIDX",
                                  size < kHeaderBytes ? " and a whole header" : "", ")"));
  }
  if (const uint64_t version = LoadAt<uint64_t>(index, 9); version != 1) {
    return DataError(absl::StrCat(path, ": has version ", version, "; version 1 is read here"));
  }
  const int code = LoadAt<uint8_t>(index, 17);
  if (code == 6 || code == 7) {
    return DataError(
        absl::StrCat(path, ": holds floating-point values (type ", code, "), not tokens"));
  }
  if (code < 1 || code > 8) return DataError(absl::StrCat(path, ": has unknown type ", code));
  // Both counts are bounded by the file's size before anything is multiplied or allocated.
  const uint64_t s = LoadAt<uint64_t>(index, 18), d = LoadAt<uint64_t>(index, 26);
  uint64_t rest = static_cast<uint64_t>(size - kHeaderBytes);
  bool fits = s <= rest / 12;
  if (fits) rest -= 12 * s;
  fits = fits && d <= rest / 8;
  if (fits) rest -= 8 * d;
  if (!fits || (rest != 0 && rest != s)) {
    return DataError(absl::StrCat(path, ": has ", size, " bytes, which does not fit its ", s,
                                  " sequences and ", d,
                                  " document boundaries: truncated or damaged"));
  }
  if (d == 0) return DataError(absl::StrCat(path, ": has no document boundaries"));
  return IndexHeader{static_cast<TokenType>(code), static_cast<int64_t>(s),
                     static_cast<int64_t>(d)};
}

// Returns the first token of each document, then the total.
absl::StatusOr<std::vector<int64_t>> ParseDocumentStarts(const std::string& path,
                                                         const std::string& index,
                                                         const IndexHeader& header,
                                                         int64_t bin_bytes) {
  const int64_t s = header.num_sequences;
  const int64_t item = TokenBytes(header.type);
  // sequence_starts[i] * item never passes bin_bytes by more than one sequence: no overflow.
  std::vector<int64_t> sequence_starts(static_cast<size_t>(s) + 1);
  int64_t tokens = 0;
  for (int64_t i = 0; i < s; ++i) {
    const int32_t length = LoadAt<int32_t>(index, kHeaderBytes + 4 * i);
    const int64_t pointer = LoadAt<int64_t>(index, kHeaderBytes + 4 * s + 8 * i);
    if (length < 0) {
      return DataError(absl::StrCat(path, ": sequence ", i, " has length ", length));
    }
    if (pointer != tokens * item) {
      return DataError(absl::StrCat(path, ": sequence ", i, " is said to start at byte ", pointer,
                                    "; the sequences before it end at ", tokens * item));
    }
    sequence_starts[static_cast<size_t>(i)] = tokens;
    tokens += length;
    if (tokens * item > bin_bytes) {
      return DataError(absl::StrCat(path, ": sequence ", i, " ends at byte ", tokens * item,
                                    ", beyond the .bin file's ", bin_bytes, " bytes"));
    }
  }
  sequence_starts[static_cast<size_t>(s)] = tokens;
  if (tokens * item != bin_bytes) {
    return DataError(absl::StrCat(path, ": describes ", tokens * item,
                                  " bytes of tokens; the .bin file has ", bin_bytes));
  }
  std::vector<int64_t> starts(static_cast<size_t>(header.num_boundaries));
  int64_t previous = 0;
  for (int64_t i = 0; i < header.num_boundaries; ++i) {
    const int64_t boundary = LoadAt<int64_t>(index, kHeaderBytes + 12 * s + 8 * i);
    const bool last = i + 1 == header.num_boundaries;
    if (boundary < previous || boundary > s || (i == 0 && boundary != 0) ||
        (last && boundary != s)) {
      return DataError(absl::StrCat(path, ": document boundary ", i, " is ", boundary,
                                    "; boundaries rise from 0 to the number of sequences, ", s));
    }
    starts[static_cast<size_t>(i)] = sequence_starts[static_cast<size_t>(boundary)];
    previous = boundary;
  }
  return starts;
}

absl::StatusOr<std::string> Fingerprint(const std::string& index, const InputFile& bin) {
  constexpr int64_t kBlocks = 16, kBlockBytes = 4096;
  const uint64_t index_hash = XXH3_64bits(index.data(), index.size());
  std::vector<char> sample(kBlocks * kBlockBytes);
  int64_t used = 0;
  for (int64_t i = 0; i < kBlocks; ++i) {
    const int64_t begin = bin.size() / kBlocks * i;
    const int64_t bytes = std::min(kBlockBytes, bin.size() - begin);
    EK_RETURN_IF_ERROR(bin.ReadAt(begin, sample.data() + used, bytes));
    used += bytes;
  }
  return absl::StrFormat("%d-%d-%016x-%016x", index.size(), bin.size(), index_hash,
                         XXH3_64bits(sample.data(), static_cast<size_t>(used)));
}

// Widens raw tokens; returns the index of the first that is outside [0, vocab_size), or -1.
template <typename T>
int64_t Widen(const char* raw, int64_t count, int64_t vocab_size, int32_t* out) {
  bool bad = false;
  for (int64_t i = 0; i < count; ++i) {
    T token;
    std::memcpy(&token, raw + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
    // Negative values become huge unsigned ones: one comparison for both ends, no branch.
    bad |= static_cast<uint64_t>(static_cast<int64_t>(token)) >= static_cast<uint64_t>(vocab_size);
    out[i] = static_cast<int32_t>(token);
  }
  if (!bad) return -1;
  for (int64_t i = 0;; ++i) {
    T token;
    std::memcpy(&token, raw + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
    if (static_cast<uint64_t>(static_cast<int64_t>(token)) >= static_cast<uint64_t>(vocab_size)) {
      return i;
    }
  }
}

int64_t Widen(TokenType type, const char* raw, int64_t count, int64_t vocab_size, int32_t* out) {
  switch (type) {
    case TokenType::kU8:
      return Widen<uint8_t>(raw, count, vocab_size, out);
    case TokenType::kI8:
      return Widen<int8_t>(raw, count, vocab_size, out);
    case TokenType::kI16:
      return Widen<int16_t>(raw, count, vocab_size, out);
    case TokenType::kI32:
      return Widen<int32_t>(raw, count, vocab_size, out);
    case TokenType::kI64:
      return Widen<int64_t>(raw, count, vocab_size, out);
    case TokenType::kU16:
      return Widen<uint16_t>(raw, count, vocab_size, out);
  }
  return 0;
}

}  // namespace

int64_t TokenBytes(TokenType type) {
  switch (type) {
    case TokenType::kU8:
    case TokenType::kI8:
      return 1;
    case TokenType::kI16:
    case TokenType::kU16:
      return 2;
    case TokenType::kI32:
      return 4;
    case TokenType::kI64:
      return 8;
  }
  return 0;
}

TokenType TokenTypeFor(int64_t vocab_size) {
  return vocab_size < 65500 ? TokenType::kU16 : TokenType::kI32;
}

std::string DatasetBinPath(const std::string& prefix) {
  return prefix + ".bin";
}
std::string DatasetIdxPath(const std::string& prefix) {
  return prefix + ".idx";
}

absl::StatusOr<IndexedDataset> IndexedDataset::Open(const std::string& prefix, int64_t vocab_size) {
  EK_CHECK(vocab_size > 0 && vocab_size <= std::numeric_limits<int32_t>::max()) << vocab_size;
  for (const char* end : {".bin", ".idx"}) {
    // Whoever lets the shell complete the name ends up here.
    std::error_code error;
    if (absl::EndsWith(prefix, end) && std::filesystem::exists(prefix, error) &&
        !std::filesystem::exists(DatasetIdxPath(prefix), error)) {
      return DataError(absl::StrCat(prefix, ": a data set goes by the prefix of its files: ",
                                    prefix.substr(0, prefix.size() - 4)));
    }
  }
  EK_ASSIGN_OR_RETURN(const InputFile idx, InputFile::Open(DatasetIdxPath(prefix)));
  EK_ASSIGN_OR_RETURN(InputFile bin, InputFile::Open(DatasetBinPath(prefix)));
  for (const InputFile* file : {&idx, static_cast<const InputFile*>(&bin)}) {
    if (!file->is_regular())
      return DataError(absl::StrCat(file->path(), ": is not a regular file"));
  }
  std::string index(static_cast<size_t>(idx.size()), '\0');
  EK_RETURN_IF_ERROR(idx.ReadAt(0, index.data(), idx.size()));
  EK_ASSIGN_OR_RETURN(const IndexHeader header, ParseHeader(idx.path(), index));
  EK_ASSIGN_OR_RETURN(std::vector<int64_t> starts,
                      ParseDocumentStarts(idx.path(), index, header, bin.size()));
  if (starts.back() == 0)
    return DataError(absl::StrCat(idx.path(), ": the data set has no tokens"));
  EK_ASSIGN_OR_RETURN(std::string fingerprint, Fingerprint(index, bin));
  IndexedDataset dataset(prefix, std::move(bin), header.type, vocab_size);
  dataset.starts_ = std::move(starts);
  dataset.fingerprint_ = std::move(fingerprint);
  return dataset;
}

std::vector<int64_t> IndexedDataset::document_lengths() const {
  std::vector<int64_t> lengths(static_cast<size_t>(num_documents()));
  for (int64_t i = 0; i < num_documents(); ++i) {
    lengths[static_cast<size_t>(i)] = document_length(i);
  }
  return lengths;
}

absl::Status IndexedDataset::ReadTokens(int64_t document, int64_t offset,
                                        absl::Span<int32_t> out) const {
  const int64_t count = static_cast<int64_t>(out.size());
  EK_CHECK(document >= 0 && document < num_documents()) << document;
  EK_CHECK(offset >= 0 && offset + count <= document_length(document))
      << "document " << document << ", tokens [" << offset << ", " << offset + count << ")";
  const int64_t item = TokenBytes(type_);
  const int64_t first = starts_[static_cast<size_t>(document)] + offset;
  std::array<char, 32768> raw;
  const int64_t chunk = static_cast<int64_t>(raw.size()) / item;
  for (int64_t done = 0; done < count; done += chunk) {
    const int64_t n = std::min(chunk, count - done);
    EK_RETURN_IF_ERROR(bin_.ReadAt((first + done) * item, raw.data(), n * item));
    const int64_t bad = Widen(type_, raw.data(), n, vocab_size_, out.data() + done);
    if (bad >= 0) {
      return DataError(absl::StrCat(bin_.path(), ": document ", document, ", position ",
                                    offset + done + bad, ": the token is not in [0, ", vocab_size_,
                                    "): not a data set for this vocabulary, or damaged"));
    }
  }
  return absl::OkStatus();
}

absl::Status IndexedDataset::CheckAllTokens() const {
  std::vector<int32_t> tokens(1 << 16);
  for (int64_t document = 0; document < num_documents(); ++document) {
    const int64_t length = document_length(document), chunk = static_cast<int64_t>(tokens.size());
    for (int64_t offset = 0; offset < length; offset += chunk) {
      const int64_t n = std::min(chunk, length - offset);
      EK_RETURN_IF_ERROR(ReadTokens(document, offset, absl::MakeSpan(tokens.data(), n)));
    }
  }
  return absl::OkStatus();
}

}  // namespace evenkeel
