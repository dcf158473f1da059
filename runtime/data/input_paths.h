// The files a user names on a command line: plain paths and patterns.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace evenkeel {

// Returns the files that `inputs` name, each once: the inputs in their order, the matches of a
// pattern sorted by name, so that the result does not depend on the file system. A path that exists
// is taken as it is, whatever characters it has, and may be a pipe. In a pattern `*`, `?` and
// `[...]` match within one name and `**` matches any number of folders, none included; names that
// start with a dot match only a dot, symbolic links to folders are not followed by `**`, and only
// regular files count. Fails with a data error if an input matches nothing, is a folder, or a
// folder cannot be read.
absl::StatusOr<std::vector<std::string>> ExpandInputs(const std::vector<std::string>& inputs);

}  // namespace evenkeel
