// Text as it must look inside JSON, XML and protobuf: names may come from users' files, so any byte
// can be in them. Everything returned is valid UTF-8.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/metrics/metric_value.h"

namespace evenkeel {

// Replaces each byte that is not part of a well-formed UTF-8 sequence by U+FFFD.
std::string ValidUtf8(const std::string& text);

// Returns the number of code points of valid UTF-8 `text`: its columns on a terminal, for the
// scripts where one code point is one column.
int64_t CodePoints(const std::string& text);

// Returns `text` as a JSON string, quotes included.
std::string JsonString(const std::string& text);

// Returns the shortest decimal number that reads back as `value`; null if it is not finite.
std::string JsonNumber(double value);

// Returns a JSON number, string, or null (a double that is not finite).
std::string JsonValue(const MetricValue& value);

// Returns `text` for use between XML tags and inside quoted attributes. Control characters, which
// XML 1.0 cannot hold even escaped, become U+FFFD.
std::string XmlText(const std::string& text);

}  // namespace evenkeel
