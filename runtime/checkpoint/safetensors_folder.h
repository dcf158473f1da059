// A folder with a model's weights as Hugging Face lays it out: one `model.safetensors`, or shards
// and `model.safetensors.index.json` = {"weight_map": {tensor: file}}.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/checkpoint/safetensors_file.h"
#include "runtime/tensor/tensor_view.h"

namespace evenkeel {

// Reading is const and safe from several threads.
class SafetensorsFolder {
 public:
  // Opens and checks every shard. Shards are plain files of the folder itself, no links; each
  // tensor of the map is in the shard it names and in no other.
  static absl::StatusOr<SafetensorsFolder> Open(const std::string& path);

  const std::string& path() const { return path_; }
  std::vector<std::string> Names() const;  // sorted
  std::optional<SafetensorsEntry> Find(const std::string& name) const;

  // As SafetensorsReader::ReadTensor.
  absl::Status ReadTensor(const std::string& name, TensorView dst) const;

 private:
  absl::Status AddShard(const FileDescriptor& folder, const std::string& name);

  std::string path_;
  std::vector<SafetensorsReader> shards_;
  std::map<std::string, size_t> shard_of_;
};

}  // namespace evenkeel
