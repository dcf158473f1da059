#include "runtime/checkpoint/safetensors_folder.h"

#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/base/status_macros.h"
#include "runtime/checkpoint/json_file.h"

namespace evenkeel {
namespace {

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";

absl::Status IndexError(const std::string& path, const std::string& what) {
  return CheckpointError(absl::StatusCode::kInvalidArgument, absl::StrCat(path, ": ", what));
}

}  // namespace

absl::StatusOr<SafetensorsFolder> SafetensorsFolder::Open(const std::string& path) {
  EK_ASSIGN_OR_RETURN(const FileDescriptor folder, OpenFolder(path));
  SafetensorsFolder model;
  model.path_ = path;
  absl::Status single = model.AddShard(folder, kSingleFile);
  if (single.ok()) return model;
  if (!absl::IsNotFound(single)) return single;

  const std::string index_path = absl::StrCat(path, "/", kIndexFile);
  absl::StatusOr<FileDescriptor> index_file = OpenFileIn(folder, path, kIndexFile);
  if (absl::IsNotFound(index_file.status())) {
    return CheckpointError(absl::StatusCode::kNotFound,
                           absl::StrCat(path, " has neither ", kSingleFile, " nor ", kIndexFile));
  }
  EK_RETURN_IF_ERROR(index_file.status());
  EK_ASSIGN_OR_RETURN(const std::string text, ReadText(*index_file, index_path, kMaxJsonBytes));
  EK_ASSIGN_OR_RETURN(const nlohmann::json index, ParseJson(text, index_path));
  const auto map = index.find("weight_map");
  if (!index.is_object() || map == index.end() || !map->is_object()) {
    return IndexError(index_path, "needs an object \"weight_map\"");
  }
  std::set<std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string()) {
      return IndexError(index_path, absl::StrCat("tensor \"", tensor, "\" names no file"));
    }
    const std::string& name = file.get_ref<const std::string&>();
    if (absl::Status status = CheckPlainName(name); !status.ok()) {
      return IndexError(index_path, absl::StrCat("tensor \"", tensor, "\": ", status.message()));
    }
    if (!absl::EndsWith(name, ".safetensors")) {
      return IndexError(index_path, absl::StrCat("\"", name, "\" is no .safetensors file"));
    }
    files.insert(name);
  }
  for (const std::string& file : files) EK_RETURN_IF_ERROR(model.AddShard(folder, file));
  for (const auto& [tensor, file] : map->items()) {
    const std::string& name = file.get_ref<const std::string&>();
    const auto found = model.shard_of_.find(tensor);
    if (found == model.shard_of_.end() ||
        model.shards_[found->second].path() != absl::StrCat(path, "/", name)) {
      return IndexError(index_path,
                        absl::StrCat("tensor \"", tensor, "\" is not in ", name, " as it says"));
    }
  }
  return model;
}

absl::Status SafetensorsFolder::AddShard(const FileDescriptor& folder, const std::string& name) {
  EK_ASSIGN_OR_RETURN(SafetensorsReader shard, SafetensorsReader::OpenIn(folder, path_, name));
  for (int64_t i = 0; i < shard.num_tensors(); ++i) {
    const std::string tensor = shard.entry(i).name;
    const auto [found, is_new] = shard_of_.emplace(tensor, shards_.size());
    if (!is_new) {
      return IndexError(shard.path(), absl::StrCat("tensor \"", tensor, "\" is also in ",
                                                   shards_[found->second].path()));
    }
  }
  shards_.push_back(std::move(shard));
  return absl::OkStatus();
}

std::vector<std::string> SafetensorsFolder::Names() const {
  std::vector<std::string> names;
  for (const auto& [name, shard] : shard_of_) names.push_back(name);
  return names;
}

std::optional<SafetensorsEntry> SafetensorsFolder::Find(const std::string& name) const {
  const auto found = shard_of_.find(name);
  if (found == shard_of_.end()) return std::nullopt;
  return shards_[found->second].Find(name);
}

absl::Status SafetensorsFolder::ReadTensor(const std::string& name, TensorView dst) const {
  const auto found = shard_of_.find(name);
  if (found == shard_of_.end()) {
    return CheckpointError(absl::StatusCode::kNotFound,
                           absl::StrCat(path_, " has no tensor \"", name, "\""));
  }
  return shards_[found->second].ReadTensor(name, dst);
}

}  // namespace evenkeel
