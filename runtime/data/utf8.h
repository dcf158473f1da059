// UTF-8 as the Unicode standard and the WHATWG encoding standard define it: no overlong forms, no
// surrogates, nothing above U+10FFFF.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace evenkeel {

// Returns the position of the first byte that starts no well-formed character, or -1.
int64_t FindInvalidUtf8(absl::string_view text);

// Turns bytes that arrive one by one into well-formed text. An unfinished character is kept back
// until it is whole; each maximal piece of an ill-formed one becomes one U+FFFD.
class Utf8Assembler {
 public:
  // Adds one byte; appends what it completed to `out`.
  void Push(uint8_t byte, std::string* out);

  // Ends the text: an unfinished character becomes U+FFFD.
  void Flush(std::string* out);

 private:
  std::string pending_;               // the bytes of the unfinished character
  int missing_ = 0;                   // bytes it still needs
  uint8_t low_ = 0x80, high_ = 0xBF;  // the range of its next byte
};

}  // namespace evenkeel
