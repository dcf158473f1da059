// Tokenized documents in Megatron's indexed format: PREFIX.bin holds the tokens, PREFIX.idx where
// each sequence lies and which sequences make up each document. All little-endian:
//
//   .idx  0        9 bytes  "MMIDIDX\0\0"
//         9        u64      version = 1
//         17       u8       type: 1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 6 f64, 7 f32, 8 u16
//         18       u64      S, the number of sequences
//         26       u64      D, the number of documents + 1
//         34       i32[S]   tokens of each sequence
//         34+4S    i64[S]   byte offset of each sequence in .bin
//         34+12S   i64[D]   first sequence of each document; the last entry is S
//         34+12S+8D  i8[S]  a mode per sequence, multimodal data only: may be absent, not used here
//   .bin  tokens without a header
//
// Source: Megatron-LM, megatron/core/datasets/indexed_dataset.py. It asserts the magic, the version
// and len(lengths) == documents[-1]; Open checks everything else as well, so that a damaged or
// hostile index is an error and never a wild read.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/data/input_file.h"

namespace evenkeel {

// The type codes that can hold tokens.
enum class TokenType : uint8_t { kU8 = 1, kI8 = 2, kI16 = 3, kI32 = 4, kI64 = 5, kU16 = 8 };

int64_t TokenBytes(TokenType type);

// The type Megatron chooses (`optimal_dtype`): u16 for vocabularies under 65500, else i32.
TokenType TokenTypeFor(int64_t vocab_size);

std::string DatasetBinPath(const std::string& prefix);
std::string DatasetIdxPath(const std::string& prefix);

// An open data set. Move-only; const functions are safe from several threads. Holds 8 bytes a
// document in memory and reads tokens with pread.
class IndexedDataset {
 public:
  // Reads and checks the index. Tokens are checked when they are read: one that is negative or not
  // below `vocab_size` is an error there. A data set without a single token is refused.
  static absl::StatusOr<IndexedDataset> Open(
      const std::string& prefix, int64_t vocab_size = std::numeric_limits<int32_t>::max());

  const std::string& prefix() const { return prefix_; }
  TokenType token_type() const { return type_; }
  int64_t num_documents() const { return static_cast<int64_t>(starts_.size()) - 1; }
  int64_t total_tokens() const { return starts_.back(); }

  // Tokens of a document, its end-of-document token included. 0 is possible in files of others.
  int64_t document_length(int64_t document) const {
    return starts_[static_cast<size_t>(document) + 1] - starts_[static_cast<size_t>(document)];
  }
  std::vector<int64_t> document_lengths() const;

  // Reads out.size() tokens of `document` from token `offset` on. The range must lie in the
  // document.
  absl::Status ReadTokens(int64_t document, int64_t offset, absl::Span<int32_t> out) const;

  // Reads every token once; returns the first error ReadTokens would give.
  absl::Status CheckAllTokens() const;

  // A cheap identity: sizes, a hash of the whole index and of 16 blocks spread over the tokens. A
  // resumed run compares it, so that a data set is not exchanged under it unnoticed.
  const std::string& fingerprint() const { return fingerprint_; }

 private:
  IndexedDataset(std::string prefix, InputFile bin, TokenType type, int64_t vocab_size)
      : prefix_(std::move(prefix)), bin_(std::move(bin)), type_(type), vocab_size_(vocab_size) {}

  std::string prefix_;
  InputFile bin_;
  TokenType type_;
  int64_t vocab_size_;
  std::vector<int64_t>
      starts_;  // [num_documents + 1]: first token of each document, then the total
  std::string fingerprint_;
};

}  // namespace evenkeel
