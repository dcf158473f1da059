// Small JSON documents (manifests, indices, config.json) read with limits and written whole.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"
#include "runtime/checkpoint/file_io.h"

namespace evenkeel {

constexpr int64_t kMaxJsonBytes = int64_t{32} << 20;
constexpr int kMaxJsonDepth = 64;

// Parses `text`, which came from `path`. Refused, with the path and the byte: anything that is not
// JSON, objects and arrays more than kMaxJsonDepth deep, a key that an object has twice.
absl::StatusOr<nlohmann::json> ParseJson(const std::string& text, const std::string& path);

// Reads and parses a file of at most kMaxJsonBytes.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path);

// Writes `document` indented, whole or not at all; `sync` makes it durable. `hook` may be null.
// Strings must be UTF-8.
absl::StatusOr<FileDigest> WriteJsonFile(const std::string& path, const nlohmann::json& document,
                                         bool sync, const IoHook* hook = nullptr);

}  // namespace evenkeel
