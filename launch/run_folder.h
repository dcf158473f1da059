// The folder a run writes into.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace evenkeel {

// Makes `path` and its parents where missing.
absl::Status MakeFolders(const std::string& path);

// Writes a small text file, whole or not at all.
absl::Status WriteTextFile(const std::string& path, const std::string& text);

// Whether the user asked the run to stop by making a file STOP in its folder.
bool HasStopFile(const std::string& folder);
void RemoveStopFile(const std::string& folder);

}  // namespace evenkeel
