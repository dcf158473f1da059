// The error kind of everything that is wrong with a data set, a corpus or a tokenizer.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "runtime/base/exit_code.h"

namespace evenkeel {

// Returns an error that ends the program with ExitCode::kData. `message` starts with the file's
// name.
inline absl::Status DataError(const std::string& message) {
  return WithExitCode(absl::InvalidArgumentError(message), ExitCode::kData);
}

}  // namespace evenkeel
