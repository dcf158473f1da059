#include "runtime/data/dataset_info.h"

#include <unistd.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/data/data_error.h"
#include "runtime/data/input_file.h"

namespace evenkeel {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kFormatVersion = 1;
constexpr int64_t kMaxBytes = 16 << 20;

absl::StatusOr<int64_t> ReadInteger(const Json& root, const std::string& key, int64_t low,
                                    int64_t high) {
  const auto it = root.find(key);
  if (it == root.end() || !it->is_number_integer()) {
    return DataError(absl::StrCat("\"", key, "\" is missing or not an integer"));
  }
  const bool too_big =
      it->is_number_unsigned() && it->get<uint64_t>() > static_cast<uint64_t>(high);
  const int64_t value = too_big ? high : it->get<int64_t>();
  if (too_big || value < low || value > high) {
    return DataError(absl::StrCat("\"", key, "\" is not in [", low, ", ", high, "]"));
  }
  return value;
}

absl::StatusOr<DatasetInfo> Parse(const std::string& text) {
  const Json root = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded() || !root.is_object()) return DataError("is not a JSON object");
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  constexpr int64_t kMaxToken = std::numeric_limits<int32_t>::max();
  EK_ASSIGN_OR_RETURN(const int64_t version, ReadInteger(root, "version", 1, kMaxToken));
  if (version > kFormatVersion) {
    return DataError(absl::StrCat("has version ", version, "; this program reads version ",
                                  kFormatVersion, " and older"));
  }
  DatasetInfo info;
  const auto tokenizer = root.find("tokenizer");
  if (tokenizer == root.end() || !tokenizer->is_string()) {
    return DataError("\"tokenizer\" is missing or not a string");
  }
  info.tokenizer = tokenizer->get<std::string>();
  EK_ASSIGN_OR_RETURN(info.vocab_size, ReadInteger(root, "vocab_size", 1, kMaxToken));
  EK_ASSIGN_OR_RETURN(const int64_t eod, ReadInteger(root, "eod_id", -1, info.vocab_size - 1));
  info.eod_id = static_cast<int32_t>(eod);
  EK_ASSIGN_OR_RETURN(info.num_documents, ReadInteger(root, "num_documents", 0, kMax));
  EK_ASSIGN_OR_RETURN(info.num_tokens, ReadInteger(root, "num_tokens", 0, kMax));
  EK_ASSIGN_OR_RETURN(info.num_files, ReadInteger(root, "num_files", 0, kMax));
  const auto sources = root.find("sources");
  if (sources == root.end() || !sources->is_array()) {
    return DataError("\"sources\" is missing or not a list");
  }
  for (const Json& source : *sources) {
    if (!source.is_string()) return DataError("\"sources\" is not a list of strings");
    info.sources.push_back(source.get<std::string>());
  }
  return info;
}

}  // namespace

std::string DatasetInfoPath(const std::string& prefix) {
  return prefix + ".dataset.json";
}

std::string FormatDatasetInfo(const DatasetInfo& info) {
  Json root;
  root["version"] = kFormatVersion;
  root["tokenizer"] = info.tokenizer;
  root["vocab_size"] = info.vocab_size;
  root["eod_id"] = info.eod_id;
  root["num_documents"] = info.num_documents;
  root["num_tokens"] = info.num_tokens;
  root["num_files"] = info.num_files;
  root["sources"] = info.sources;
  // File names need not be UTF-8; what is not becomes U+FFFD instead of an exception.
  return root.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<DatasetInfo> ReadDatasetInfo(const std::string& prefix) {
  const std::string path = DatasetInfoPath(prefix);
  if (access(path.c_str(), F_OK) != 0) {
    return WithExitCode(absl::NotFoundError(absl::StrCat(path, ": there is none")),
                        ExitCode::kData);
  }
  EK_ASSIGN_OR_RETURN(const InputFile file, InputFile::Open(path));
  if (!file.is_regular() || file.size() > kMaxBytes) {
    return DataError(absl::StrCat(path, ": is not a file of at most ", kMaxBytes, " bytes"));
  }
  std::string text(static_cast<size_t>(file.size()), '\0');
  EK_RETURN_IF_ERROR(file.ReadAt(0, text.data(), file.size()));
  absl::StatusOr<DatasetInfo> info = Parse(text);
  if (!info.ok()) return DataError(absl::StrCat(path, ": ", info.status().message()));
  return info;
}

}  // namespace evenkeel
