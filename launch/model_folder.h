// Where a model comes from on the command line.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace evenkeel {

// `path` may be a run folder (its newest good checkpoint is taken), a checkpoint, or any folder in
// Hugging Face's layout. Returns the folder that holds config.json; fails with a checkpoint error
// that says what was looked for.
absl::StatusOr<std::string> FindModelFolder(const std::string& path);

}  // namespace evenkeel
