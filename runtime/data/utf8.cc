#include "runtime/data/utf8.h"

#include <cstring>

namespace evenkeel {
namespace {

constexpr char kReplacement[] = "\xEF\xBF\xBD";  // U+FFFD

// What a first byte promises: how many bytes follow (-1: it starts no character) and the range of
// the next one. The ranges exclude overlong forms (E0, F0), surrogates (ED) and > U+10FFFF (F4).
struct Lead {
  int following;
  uint8_t low, high;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {0, 0, 0};
  if (byte >= 0xC2 && byte <= 0xDF) return {1, 0x80, 0xBF};
  if (byte == 0xE0) return {2, 0xA0, 0xBF};
  if (byte == 0xED) return {2, 0x80, 0x9F};
  if (byte >= 0xE1 && byte <= 0xEF) return {2, 0x80, 0xBF};
  if (byte == 0xF0) return {3, 0x90, 0xBF};
  if (byte >= 0xF1 && byte <= 0xF3) return {3, 0x80, 0xBF};
  if (byte == 0xF4) return {3, 0x80, 0x8F};
  return {-1, 0, 0};
}

}  // namespace

int64_t FindInvalidUtf8(absl::string_view text) {
  const size_t n = text.size();
  for (size_t i = 0; i < n;) {
    uint64_t word = 0;
    if (i + 8 <= n) {
      std::memcpy(&word, text.data() + i, 8);
      if ((word & 0x8080808080808080ULL) == 0) {  // eight ASCII characters
        i += 8;
        continue;
      }
    }
    const Lead lead = LeadOf(static_cast<uint8_t>(text[i]));
    if (lead.following < 0 || i + static_cast<size_t>(lead.following) >= n) {
      return static_cast<int64_t>(i);
    }
    uint8_t low = lead.low, high = lead.high;
    for (int k = 1; k <= lead.following; ++k) {
      const uint8_t byte = static_cast<uint8_t>(text[i + static_cast<size_t>(k)]);
      if (byte < low || byte > high) return static_cast<int64_t>(i);
      low = 0x80;
      high = 0xBF;
    }
    i += static_cast<size_t>(lead.following) + 1;
  }
  return -1;
}

void Utf8Assembler::Push(uint8_t byte, std::string* out) {
  if (missing_ > 0) {
    if (byte >= low_ && byte <= high_) {
      pending_.push_back(static_cast<char>(byte));
      low_ = 0x80;
      high_ = 0xBF;
      if (--missing_ == 0) {
        out->append(pending_);
        pending_.clear();
      }
      return;
    }
    Flush(out);  // and the byte that broke the character starts another
  }
  const Lead lead = LeadOf(byte);
  if (lead.following < 0) {
    out->append(kReplacement);
  } else if (lead.following == 0) {
    out->push_back(static_cast<char>(byte));
  } else {
    pending_.assign(1, static_cast<char>(byte));
    missing_ = lead.following;
    low_ = lead.low;
    high_ = lead.high;
  }
}

void Utf8Assembler::Flush(std::string* out) {
  if (missing_ > 0) out->append(kReplacement);
  missing_ = 0;
  pending_.clear();
}

}  // namespace evenkeel
