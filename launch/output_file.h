// Files and folders that a command writes what it found into, where an option names them.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "runtime/comm/communicator.h"

namespace evenkeel {

// Makes `path` and its parents where missing.
absl::Status MakeFolders(const std::string& path);

// Makes the folders above the file `path`, and fails (exit code kUsage) where it could not be
// written: called before minutes of work, not behind them. Leaves an old file as it is. Does
// nothing for an empty path, an option that was not given.
absl::Status PrepareOutputFile(const std::string& path);

// The same for a file that rank 0 is to write. Every rank calls it; fails alike on all.
absl::Status PrepareOutputFile(Communicator& comm, const std::string& path);

// The same for a folder of files with names of our own.
absl::Status PrepareOutputFolder(const std::string& path);

// Writes a small text file, whole or not at all, into a folder that exists.
absl::Status WriteTextFile(const std::string& path, const std::string& text);

}  // namespace evenkeel
