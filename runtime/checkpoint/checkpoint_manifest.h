// manifest.json of a checkpoint: which files it consists of, and what they must hash to.
//   {"format": "evenkeel-checkpoint", "format_version": 1, "step": 20,
//    "files": {name: {"bytes": n, "xxh3_128": hex}}, "state": {...}, "manifest_xxh3_128": hex}
// The last member is the hash of the document without it in its compact form.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/checkpoint/file_io.h"

namespace evenkeel {

constexpr char kManifestName[] = "manifest.json";

struct CheckpointManifest {
  int64_t step = 0;
  std::map<std::string, FileDigest> files;
  std::string state_json;  // an object
};

// Writes the manifest into `folder`; its own durability is the caller's. Fails if state_json is not
// an object.
absl::Status WriteManifest(const std::string& folder, const CheckpointManifest& manifest,
                           const IoHook* hook);

// Reads and checks the manifest of an open folder. One that was changed is kDataLoss; one of a
// newer format version is refused by name.
absl::StatusOr<CheckpointManifest> ReadManifest(const FileDescriptor& folder,
                                                const std::string& folder_path);

}  // namespace evenkeel
