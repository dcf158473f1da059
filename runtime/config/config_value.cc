#include "runtime/config/config_value.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "runtime/config/config_document.h"

namespace evenkeel {
namespace {

std::string Expected(const std::string& what, const std::string& text, bool quoted) {
  if (quoted)
    return absl::StrCat("expected ", what, ", got the string \"", QuoteForMessage(text), "\"");
  return absl::StrCat("expected ", what, ", got ", QuoteForMessage(text));
}

bool HasSign(const std::string& text) {
  return !text.empty() && (text[0] == '-' || text[0] == '+');
}

bool AllDigits(const std::string& text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return absl::ascii_isdigit(c); });
}

bool HasLeadingZero(const std::string& text) {
  const size_t start = HasSign(text) ? 1 : 0;
  return text.size() > start + 1 && text[start] == '0' && absl::ascii_isdigit(text[start + 1]);
}

std::string WithoutLeadingZeros(const std::string& text) {
  size_t first = HasSign(text) ? 1 : 0;
  const std::string sign = text[0] == '-' ? "-" : "";
  while (first + 1 < text.size() && text[first] == '0' && absl::ascii_isdigit(text[first + 1])) {
    ++first;
  }
  return sign + text.substr(first);
}

// from_chars takes no plus sign.
template <typename T>
std::errc FromChars(const std::string& text, T* value) {
  const size_t skip = text[0] == '+' ? 1 : 0;
  const char* end = text.data() + text.size();
  const auto [position, error] = std::from_chars(text.data() + skip, end, *value);
  if (error != std::errc()) return error;
  return position == end ? std::errc() : std::errc::invalid_argument;
}

// [+-] digits [. digits] [e [+-] digits], with digits before or after the point.
bool IsDecimal(const std::string& text) {
  size_t i = HasSign(text) ? 1 : 0;
  const auto skip_digits = [&] {
    const size_t begin = i;
    while (i < text.size() && absl::ascii_isdigit(text[i])) ++i;
    return i - begin;
  };
  size_t digits = skip_digits();
  if (i < text.size() && text[i] == '.') {
    ++i;
    digits += skip_digits();
  }
  if (digits == 0) return false;
  if (i < text.size() && (text[i] == 'e' || text[i] == 'E')) {
    ++i;
    if (i < text.size() && (text[i] == '+' || text[i] == '-')) ++i;
    if (skip_digits() == 0) return false;
  }
  return i == text.size();
}

bool IsNonFiniteWord(const std::string& text) {
  const std::string word = absl::AsciiStrToLower(text.substr(HasSign(text) ? 1 : 0));
  return word == ".nan" || word == "nan" || word == ".inf" || word == "inf" || word == "infinity";
}

}  // namespace

std::string ParseIntValue(const std::string& text, bool quoted, int64_t* value) {
  const std::string error = Expected("an integer", text, quoted);
  const std::string digits = text.substr(HasSign(text) ? 1 : 0);
  if (quoted) {
    if (AllDigits(digits)) return absl::StrCat(error, "; write it without quotes");
    return error;
  }
  if (AllDigits(digits)) {
    if (HasLeadingZero(text)) {
      return absl::StrCat(error, "; leading zeros mean octal to some: write ",
                          WithoutLeadingZeros(text));
    }
    int64_t parsed = 0;
    if (FromChars(text, &parsed) != std::errc()) {
      return absl::StrCat(error, ", which does not fit 64 bits");
    }
    *value = parsed;
    return "";
  }
  if (const std::string joined = absl::StrReplaceAll(text, {{"_", ""}});
      joined.size() < text.size() && AllDigits(joined)) {
    return absl::StrCat(error, "; write ", WithoutLeadingZeros(joined));
  }
  double as_float = 0;
  if (IsDecimal(text) && FromChars(text, &as_float) == std::errc() &&
      as_float == std::floor(as_float) && std::abs(as_float) < 0x1p53) {
    return absl::StrCat(error, "; write ", static_cast<int64_t>(as_float));
  }
  if (absl::StartsWithIgnoreCase(digits, "0x") || absl::StartsWithIgnoreCase(digits, "0o")) {
    return absl::StrCat(error, "; write it in decimal");
  }
  return error;
}

std::string ParseFloatValue(const std::string& text, bool quoted, double* value) {
  const std::string error = Expected("a number", text, quoted);
  if (quoted) {
    return IsDecimal(text) ? absl::StrCat(error, "; write it without quotes") : error;
  }
  if (IsNonFiniteWord(text)) return absl::StrCat("expected a finite number, got ", text);
  if (!IsDecimal(text)) {
    const std::string joined = absl::StrReplaceAll(text, {{"_", ""}});
    if (joined.size() < text.size() && IsDecimal(joined)) {
      return absl::StrCat(error, "; write ", joined);
    }
    return error;
  }
  if (HasLeadingZero(text)) {
    return absl::StrCat(error, "; leading zeros mean octal to some: write ",
                        WithoutLeadingZeros(text));
  }
  double parsed = 0;
  if (FromChars(text, &parsed) != std::errc()) {
    return absl::StrCat(error, ", which is beyond the range of a 64-bit float");
  }
  *value = parsed;
  return "";
}

std::string ParseBoolValue(const std::string& text, bool quoted, bool* value) {
  const std::string error = Expected("true or false", text, quoted);
  const std::string word = absl::AsciiStrToLower(text);
  const bool means_true =
      word == "true" || word == "yes" || word == "on" || word == "y" || word == "1";
  const bool means_false =
      word == "false" || word == "no" || word == "off" || word == "n" || word == "0";
  if (!quoted && (text == "true" || text == "false")) {
    *value = means_true;
    return "";
  }
  if (means_true || means_false)
    return absl::StrCat(error, "; write ", means_true ? "true" : "false");
  return error;
}

std::string FormatFloatValue(double value) {
  std::array<char, 32> text;
  const double size = std::abs(value);
  const auto format = value == 0 || (size >= 1e-4 && size < 1e9) ? std::chars_format::fixed
                                                                 : std::chars_format::scientific;
  const auto result = std::to_chars(text.data(), text.data() + text.size(), value, format);
  return std::string(text.data(), result.ptr);
}

std::string FormatStringValue(const std::string& value) {
  const std::string word = absl::AsciiStrToLower(value);
  bool plain = !value.empty() && (absl::ascii_isalpha(value[0]) || value[0] == '/') &&
               std::all_of(value.begin(), value.end(), [](char c) {
                 return absl::ascii_isalnum(c) || c == '_' || c == '.' || c == '/' || c == '-';
               });
  for (const char* reserved : {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}) {
    plain = plain && word != reserved;
  }
  if (plain) return value;
  std::string out = "\"";
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      absl::StrAppend(&out, "\\x", absl::Hex(byte, absl::kZeroPad2));
    } else {
      out += c;
    }
  }
  return out + "\"";
}

}  // namespace evenkeel
