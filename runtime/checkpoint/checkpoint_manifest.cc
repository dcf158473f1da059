#include "runtime/checkpoint/checkpoint_manifest.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/base/status_macros.h"
#include "runtime/checkpoint/json_file.h"

namespace evenkeel {
namespace {

using nlohmann::json;

constexpr char kFormat[] = "evenkeel-checkpoint";
constexpr int64_t kFormatVersion = 1;
constexpr char kChecksum[] = "manifest_xxh3_128";

absl::Status ManifestError(absl::StatusCode code, const std::string& folder,
                           const std::string& what) {
  return CheckpointError(code, absl::StrCat(folder, "/", kManifestName, ": ", what));
}

// Returns the non-negative integer `key` of `object`, or -1.
int64_t IntegerOf(const json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_number_unsigned()) return -1;
  const auto value = it->get<uint64_t>();
  const bool fits = value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  return fits ? static_cast<int64_t>(value) : -1;
}

std::string StringOf(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

}  // namespace

absl::Status WriteManifest(const std::string& folder, const CheckpointManifest& manifest,
                           const IoHook* hook) {
  EK_ASSIGN_OR_RETURN(json state, ParseJson(manifest.state_json, "checkpoint state"));
  if (!state.is_object()) {
    return ManifestError(absl::StatusCode::kInvalidArgument, folder, "the state is not an object");
  }
  json files = json::object();
  for (const auto& [name, digest] : manifest.files) {
    files[name] = {{"bytes", digest.bytes}, {"xxh3_128", digest.xxh3_128}};
  }
  json document = {{"format", kFormat},
                   {"format_version", kFormatVersion},
                   {"step", manifest.step},
                   {"files", std::move(files)},
                   {"state", std::move(state)}};
  document[kChecksum] = HashText(document.dump());
  return WriteJsonFile(absl::StrCat(folder, "/", kManifestName), document, false, hook).status();
}

absl::StatusOr<CheckpointManifest> ReadManifest(const FileDescriptor& folder,
                                                const std::string& folder_path) {
  const std::string path = absl::StrCat(folder_path, "/", kManifestName);
  EK_ASSIGN_OR_RETURN(const FileDescriptor file, OpenFileIn(folder, folder_path, kManifestName));
  EK_ASSIGN_OR_RETURN(const std::string text, ReadText(file, path, kMaxJsonBytes));
  EK_ASSIGN_OR_RETURN(json document, ParseJson(text, path));
  if (!document.is_object() || StringOf(document, "format") != kFormat) {
    return ManifestError(absl::StatusCode::kDataLoss, folder_path,
                         "is not a checkpoint's manifest");
  }
  if (const int64_t version = IntegerOf(document, "format_version"); version != kFormatVersion) {
    return ManifestError(absl::StatusCode::kFailedPrecondition, folder_path,
                         absl::StrCat("has format version ", version,
                                      ", this program reads version ", kFormatVersion));
  }
  const std::string expected = StringOf(document, kChecksum);
  document.erase(kChecksum);
  if (const std::string actual = HashText(document.dump()); actual != expected) {
    return ManifestError(absl::StatusCode::kDataLoss, folder_path,
                         absl::StrCat("was changed: its hash is ", actual, ", it says ", expected));
  }
  CheckpointManifest manifest;
  manifest.step = IntegerOf(document, "step");
  const auto files = document.find("files"), state = document.find("state");
  if (manifest.step < 0 || files == document.end() || !files->is_object() ||
      state == document.end() || !state->is_object()) {
    return ManifestError(absl::StatusCode::kDataLoss, folder_path, "step, files or state missing");
  }
  for (const auto& [name, entry] : files->items()) {
    FileDigest digest;
    if (entry.is_object()) digest = {IntegerOf(entry, "bytes"), StringOf(entry, "xxh3_128")};
    if (digest.bytes < 0 || digest.xxh3_128.size() != 32 || !CheckPlainName(name).ok()) {
      return ManifestError(absl::StatusCode::kDataLoss, folder_path,
                           absl::StrCat("bad entry for file \"", name, "\""));
    }
    manifest.files[name] = digest;
  }
  manifest.state_json = state->dump();
  return manifest;
}

}  // namespace evenkeel
