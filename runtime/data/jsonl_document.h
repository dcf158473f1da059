// One line of a JSONL corpus: an object whose member `key` is the document's text.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace evenkeel {

// Returns the text under `key` of the object in `line`. Strict: UTF-8 throughout, no raw NUL, at
// most 128 levels deep, `key` a string that occurs once. The error says what is wrong with the
// line, not which line it is.
absl::StatusOr<std::string> ParseJsonlDocument(const std::string& line, const std::string& key);

}  // namespace evenkeel
