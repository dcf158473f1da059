// Models in the layout of Hugging Face: a folder with `config.json` and `model.safetensors` (or its
// shards). What we write, transformers loads (Llama, Qwen2, Qwen3), and what it writes, we load.
// TransNormerLLM uses OpenNLPLab's names. Shapes that neither knows (hybrids, TransNormer v1) are
// written with model_type "evenkeel". Every config.json of ours also carries the whole model config
// under the key "evenkeel", which transformers ignores.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/model.h"
#include "nlohmann/json_fwd.hpp"
#include "runtime/checkpoint/safetensors_file.h"

namespace evenkeel {

// The config.json of `config`. `dtype_name` is what the weights are stored as ("float32").
nlohmann::json ToHuggingFaceConfig(const ModelConfig& config, const std::string& dtype_name);

// Reads a config.json: ours, or one of the model types llama, qwen2, qwen3 and transnormer. Fails,
// naming `path` and the key, on anything out of range or not supported.
absl::StatusOr<ModelConfig> FromHuggingFaceConfig(const nlohmann::json& json,
                                                  const std::string& path);
absl::StatusOr<ModelConfig> ReadHuggingFaceConfig(const std::string& folder);

// Every parameter under its name, as views of a flat buffer laid out as `layout` says.
std::vector<SafetensorsTensor> NamedTensors(const ParameterLayout& layout, ConstTensorView flat,
                                            StoredType type);

// Reads all parameters from the folder's weights into `flat`, on the host. Missing, surplus and
// misshapen tensors are errors that name file and tensor.
absl::Status ReadWeights(const std::string& folder, const ModelConfig& config,
                         const ParameterLayout& layout, TensorView flat);

// Writes config.json and model.safetensors into an existing folder. `weights` are the model's, on
// the host.
absl::Status WriteHuggingFaceFolder(const std::string& folder, const Model& model,
                                    ConstTensorView weights, StoredType type);

// Opens the folder's config and weights as a model without gradients on the context's device.
absl::StatusOr<Model> LoadModel(const OpContext& context, const std::string& folder,
                                MemoryTracker& tracker);

}  // namespace evenkeel
