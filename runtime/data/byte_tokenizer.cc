#include "runtime/data/byte_tokenizer.h"

namespace evenkeel {

std::vector<int32_t> EncodeBytes(absl::string_view text) {
  std::vector<int32_t> tokens(text.size());
  for (size_t i = 0; i < text.size(); ++i) tokens[i] = static_cast<uint8_t>(text[i]);
  return tokens;
}

std::string ByteDecoder::Push(int32_t token) {
  std::string text;
  if (token >= 0 && token < 256) {
    assembler_.Push(static_cast<uint8_t>(token), &text);
  } else {
    assembler_.Flush(&text);
    if (token != kByteEod) text.append("\xEF\xBF\xBD");
  }
  return text;
}

std::string ByteDecoder::Flush() {
  std::string text;
  assembler_.Flush(&text);
  return text;
}

std::string DecodeBytes(absl::Span<const int32_t> tokens) {
  ByteDecoder decoder;
  std::string text;
  for (const int32_t token : tokens) text += decoder.Push(token);
  return text + decoder.Flush();
}

}  // namespace evenkeel
