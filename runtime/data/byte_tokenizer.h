// The built-in tokenizer: each byte of UTF-8 text is a token, and one more token ends a document.
// It needs no vocabulary file and can encode any text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/data/utf8.h"

namespace evenkeel {

inline constexpr char kByteTokenizerName[] = "bytes";
inline constexpr int32_t kByteEod = 256;  // end of document
inline constexpr int64_t kByteVocabSize = 257;

// Returns one token a byte. Does not append kByteEod.
std::vector<int32_t> EncodeBytes(absl::string_view text);

// Turns tokens into text as they are generated, so that a terminal never shows half a character.
class ByteDecoder {
 public:
  // Returns the text that `token` completes, often empty. Ill-formed bytes become U+FFFD; kByteEod
  // ends a text and itself prints nothing; a token above it (a model's vocabulary may be padded)
  // becomes U+FFFD.
  std::string Push(int32_t token);

  // Ends the text: returns U+FFFD if a character was unfinished.
  std::string Flush();

 private:
  Utf8Assembler assembler_;
};

// Returns the text of all of `tokens`.
std::string DecodeBytes(absl::Span<const int32_t> tokens);

}  // namespace evenkeel
