#include "runtime/metrics/text_escape.h"

#include <charconv>
#include <cmath>

#include "absl/strings/str_format.h"

namespace evenkeel {
namespace {

constexpr char kReplacement[] = "\xEF\xBF\xBD";  // U+FFFD

// Returns the length of the well-formed sequence that starts at text[i], or 0 (RFC 3629: no
// overlong forms, no surrogates, nothing above U+10FFFF).
size_t SequenceLength(const std::string& text, size_t i) {
  const auto byte = [&](size_t k) -> unsigned {
    return i + k < text.size() ? static_cast<unsigned char>(text[i + k]) : 0;
  };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  for (size_t k = 1; k < length; ++k) {
    if ((byte(k) & 0xC0) != 0x80) return 0;
  }
  const unsigned second = byte(1);
  if (lead == 0xE0 && second < 0xA0) return 0;
  if (lead == 0xED && second > 0x9F) return 0;
  if (lead == 0xF0 && second < 0x90) return 0;
  if (lead == 0xF4 && second > 0x8F) return 0;
  return length;
}

}  // namespace

std::string ValidUtf8(const std::string& text) {
  std::string valid;
  valid.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    if (const size_t length = SequenceLength(text, i); length > 0) {
      valid.append(text, i, length);
      i += length;
    } else {
      valid += kReplacement;
      ++i;
    }
  }
  return valid;
}

int64_t CodePoints(const std::string& text) {
  int64_t count = 0;
  for (const char c : text) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

std::string JsonString(const std::string& text) {
  std::string json = "\"";
  for (const char c : ValidUtf8(text)) {
    if (c == '"' || c == '\\') {
      json += '\\';
      json += c;
    } else if (c == '\n') {
      json += "\\n";
    } else if (c == '\t') {
      json += "\\t";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      absl::StrAppendFormat(&json, "\\u%04x", static_cast<unsigned>(c));
    } else {
      json += c;
    }
  }
  return json + "\"";
}

std::string JsonNumber(double value) {
  if (!std::isfinite(value)) return "null";
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof(digits), value).ptr;
  return std::string(digits, end);
}

std::string JsonValue(const MetricValue& value) {
  if (const auto* number = std::get_if<double>(&value.value)) return JsonNumber(*number);
  if (const auto* integer = std::get_if<int64_t>(&value.value)) return std::to_string(*integer);
  return JsonString(std::get<std::string>(value.value));
}

std::string XmlText(const std::string& text) {
  std::string xml;
  for (const char c : ValidUtf8(text)) {
    switch (c) {
      case '&':
        xml += "&amp;";
        break;
      case '<':
        xml += "&lt;";
        break;
      case '>':
        xml += "&gt;";
        break;
      case '"':
        xml += "&quot;";
        break;
      case '\'':
        xml += "&#39;";
        break;
      case '\t':
      case '\n':
      case '\r':
        xml += ' ';
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          xml += kReplacement;
        } else {
          xml += c;
        }
    }
  }
  return xml;
}

}  // namespace evenkeel
