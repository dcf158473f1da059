// Strict conversion between the text of a scalar and a typed value. What YAML 1.1 would guess at
// (octal 010, sexagesimals, 1_000, yes/no, quoted numbers, .nan) is refused, with what to write.
#pragma once

#include <cstdint>
#include <string>

namespace evenkeel {

// Each returns "" and sets `value`, or says what is wrong with the scalar `text` ("expected an
// integer, got 1e6; write 1000000") and leaves `value` alone. `quoted`: it stood in quotes.
std::string ParseIntValue(const std::string& text, bool quoted, int64_t* value);
std::string ParseFloatValue(const std::string& text, bool quoted, double* value);  // finite only
std::string ParseBoolValue(const std::string& text, bool quoted, bool* value);

// The shortest text that ParseFloatValue reads back as the same bits.
std::string FormatFloatValue(double value);

// The string as a YAML scalar, in double quotes unless it is a plain word that no YAML reader takes
// for something else.
std::string FormatStringValue(const std::string& value);

}  // namespace evenkeel
