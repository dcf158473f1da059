#include "runtime/checkpoint/json_file.h"

#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/base/status_macros.h"

namespace evenkeel {
namespace {

using nlohmann::json;

absl::Status JsonError(const std::string& path, int64_t byte, const std::string& what) {
  return CheckpointError(absl::StatusCode::kInvalidArgument,
                         absl::StrCat(path, ": byte ", byte, ": ", what));
}

// Looks at brackets outside strings only, before anything is built from them.
absl::Status CheckDepth(const std::string& text, const std::string& path) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxJsonDepth) {
        return JsonError(path, static_cast<int64_t>(i),
                         absl::StrCat("nested more than ", kMaxJsonDepth, " deep"));
      }
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<json> ParseJson(const std::string& text, const std::string& path) {
  EK_RETURN_IF_ERROR(CheckDepth(text, path));
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  std::string duplicate;
  const auto watch = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key &&
        !keys.back().insert(value.get_ref<const std::string&>()).second && duplicate.empty()) {
      duplicate = value.get<std::string>();
    }
    return true;
  };
  try {
    json document = json::parse(text, watch);
    if (!duplicate.empty()) {
      return CheckpointError(absl::StatusCode::kInvalidArgument,
                             absl::StrCat(path, ": key \"", duplicate, "\" appears twice"));
    }
    return document;
  } catch (const json::parse_error& error) {
    return JsonError(path, static_cast<int64_t>(error.byte), error.what());
  } catch (const json::exception& error) {
    return CheckpointError(absl::StatusCode::kInvalidArgument,
                           absl::StrCat(path, ": ", error.what()));
  }
}

absl::StatusOr<json> ReadJsonFile(const std::string& path) {
  EK_ASSIGN_OR_RETURN(const FileDescriptor file, OpenFile(path));
  EK_ASSIGN_OR_RETURN(const std::string text, ReadText(file, path, kMaxJsonBytes));
  return ParseJson(text, path);
}

absl::StatusOr<FileDigest> WriteJsonFile(const std::string& path, const json& document, bool sync,
                                         const IoHook* hook) {
  std::string text;
  try {
    text = document.dump(2) + "\n";
  } catch (const json::exception& error) {
    return CheckpointError(absl::StatusCode::kInvalidArgument,
                           absl::StrCat(path, ": ", error.what()));
  }
  EK_ASSIGN_OR_RETURN(FileWriter writer, FileWriter::Create(path, hook));
  EK_RETURN_IF_ERROR(writer.Write(text.data(), static_cast<int64_t>(text.size())));
  return writer.Commit(sync);
}

}  // namespace evenkeel
