// Model configs as JSON, and the checked reading of JSON written by others.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/model_config.h"
#include "nlohmann/json_fwd.hpp"

namespace evenkeel {

// Reads keys of a JSON object into variables that hold the defaults. Keys it is not asked for are
// ignored: a config.json has many that do not concern us. Keeps the first error, which names file
// and key.
class JsonReader {
 public:
  JsonReader(const nlohmann::json& object, std::string path);

  void Int(const char* key, int64_t* value, int64_t min, int64_t max, bool required);
  void Float(const char* key, double* value, double min, double max);
  void Bool(const char* key, bool* value);
  void String(const char* key, std::string* value);
  // A list of zeros and ones: the indices of the ones.
  void IndicesOfOnes(const char* key, std::vector<int64_t>* indices);
  // The value, or null if absent.
  const nlohmann::json* Find(const char* key) const;
  void Error(const char* key, const std::string& message);

  const std::string& path() const { return path_; }
  const absl::Status& status() const { return status_; }

 private:
  const nlohmann::json& object_;
  std::string path_;
  absl::Status status_;
};

// Reads rope_scaling, or rope_parameters as transformers 5 writes it.
void ReadRope(JsonReader& reader, RopeConfig* rope);

// Every field of the model config, by the names of the run config.
nlohmann::json ToJson(const ModelConfig& config);
absl::StatusOr<ModelConfig> FromJson(const nlohmann::json& json, const std::string& path);

}  // namespace evenkeel
