#include "launch/training_state.h"

#include "absl/strings/str_cat.h"
#include "models/hugging_face.h"
#include "nlohmann/json.hpp"
#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"
#include "runtime/checkpoint/json_file.h"
#include "runtime/comm/agreement.h"
#include "runtime/ops/host_mirror.h"

namespace evenkeel {
namespace {

using Json = nlohmann::json;

// What a checkpoint holds, on the host.
struct HostState {
  HostMirror weights, exp_avg, exp_avg_sq;

  static absl::StatusOr<HostState> Create(const OpContext& context, Model& model,
                                          Optimizer& optimizer) {
    EK_ASSIGN_OR_RETURN(HostMirror weights, HostMirror::Create(context, model.weights()));
    EK_ASSIGN_OR_RETURN(HostMirror exp_avg, HostMirror::Create(context, optimizer.exp_avg()));
    EK_ASSIGN_OR_RETURN(HostMirror exp_avg_sq, HostMirror::Create(context, optimizer.exp_avg_sq()));
    return HostState{std::move(weights), std::move(exp_avg), std::move(exp_avg_sq)};
  }
  absl::Status Download(const OpContext& context) {
    EK_RETURN_IF_ERROR(weights.Download(context));
    EK_RETURN_IF_ERROR(exp_avg.Download(context));
    return exp_avg_sq.Download(context);
  }
  absl::Status Upload(const OpContext& context) {
    EK_RETURN_IF_ERROR(weights.Upload(context));
    EK_RETURN_IF_ERROR(exp_avg.Upload(context));
    return exp_avg_sq.Upload(context);
  }
};

std::vector<SafetensorsTensor> OptimizerTensors(const Model& model, HostState& state,
                                                StoredType type) {
  std::vector<SafetensorsTensor> tensors;
  for (auto& tensor : NamedTensors(model.layout(), state.exp_avg.view(), type)) {
    tensor.name = "exp_avg." + tensor.name;
    tensors.push_back(std::move(tensor));
  }
  for (auto& tensor : NamedTensors(model.layout(), state.exp_avg_sq.view(), type)) {
    tensor.name = "exp_avg_sq." + tensor.name;
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

absl::Status Mismatch(const std::string& folder, const std::string& what, const std::string& stored,
                      const std::string& expected) {
  return WithExitCode(absl::FailedPreconditionError(absl::StrCat(
                          folder, ": the checkpoint was made with ", what, " ", stored,
                          ", this run has ", expected, ": use another run folder, or set it back")),
                      ExitCode::kCheckpoint);
}

absl::StatusOr<TrainingProgress> ParseState(const OpenedCheckpoint& checkpoint,
                                            const TrainingProgress& expected) {
  EK_ASSIGN_OR_RETURN(const Json json, ParseJson(checkpoint.state_json, checkpoint.folder));
  TrainingProgress progress;
  try {
    progress.step = json.at("step").get<int64_t>();
    progress.samples = json.at("samples").get<int64_t>();
    progress.tokens = json.at("tokens").get<int64_t>();
    progress.seed = json.at("seed").get<int64_t>();
    progress.sequence_length = json.at("sequence_length").get<int64_t>();
    progress.data_fingerprint = json.at("data_fingerprint").get<std::string>();
  } catch (const Json::exception& error) {
    return WithExitCode(absl::DataLossError(absl::StrCat(checkpoint.folder,
                                                         ": manifest.json: state: ", error.what())),
                        ExitCode::kCheckpoint);
  }
  if (progress.seed != expected.seed) {
    return Mismatch(checkpoint.folder, "seed", absl::StrCat(progress.seed),
                    absl::StrCat(expected.seed));
  }
  if (progress.sequence_length != expected.sequence_length) {
    return Mismatch(checkpoint.folder, "data.sequence_length",
                    absl::StrCat(progress.sequence_length), absl::StrCat(expected.sequence_length));
  }
  if (progress.data_fingerprint != expected.data_fingerprint) {
    return Mismatch(checkpoint.folder, "training data of fingerprint", progress.data_fingerprint,
                    expected.data_fingerprint);
  }
  return progress;
}

absl::Status ReadOptimizer(const std::string& path, const ParameterLayout& layout,
                           HostState& state) {
  EK_ASSIGN_OR_RETURN(const SafetensorsReader reader, SafetensorsReader::Open(path));
  for (const ParameterSpec& spec : layout.specs()) {
    const auto view = [&](HostMirror& flat) {
      return flat.view().Rows(spec.offset, spec.offset + spec.size()).Reshape(spec.shape);
    };
    EK_RETURN_IF_ERROR(reader.ReadTensor("exp_avg." + spec.name, view(state.exp_avg)));
    EK_RETURN_IF_ERROR(reader.ReadTensor("exp_avg_sq." + spec.name, view(state.exp_avg_sq)));
  }
  return absl::OkStatus();
}

// Rank 0's part. A run without checkpoints leaves progress->step at 0.
absl::Status LoadNewest(const CheckpointStore& store, bool fallback,
                        const TrainingProgress& expected, TrainingProgress* progress,
                        const Model& model, HostState& state) {
  EK_ASSIGN_OR_RETURN(const std::vector<int64_t> steps, store.Steps());
  if (steps.empty()) return absl::OkStatus();
  EK_ASSIGN_OR_RETURN(const OpenedCheckpoint checkpoint, store.LoadLatest(fallback));
  EK_ASSIGN_OR_RETURN(const ModelConfig stored, ReadHuggingFaceConfig(checkpoint.folder));
  const std::string stored_config = ToHuggingFaceConfig(stored, "").dump();
  const std::string config = ToHuggingFaceConfig(model.config(), "").dump();
  if (stored_config != config) return Mismatch(checkpoint.folder, "model", stored_config, config);
  EK_ASSIGN_OR_RETURN(*progress, ParseState(checkpoint, expected));
  EK_RETURN_IF_ERROR(
      ReadWeights(checkpoint.folder, model.config(), model.layout(), state.weights.view()));
  return ReadOptimizer(checkpoint.folder + "/optimizer.safetensors", model.layout(), state);
}

}  // namespace

absl::Status SaveTraining(const OpContext& context, CheckpointStore& store,
                          const TrainingProgress& progress, int keep_last, Model& model,
                          Optimizer& optimizer) {
  EK_ASSIGN_OR_RETURN(HostState host, HostState::Create(context, model, optimizer));
  EK_RETURN_IF_ERROR(host.Download(context));
  const Json state = {{"step", progress.step},
                      {"samples", progress.samples},
                      {"tokens", progress.tokens},
                      {"seed", progress.seed},
                      {"sequence_length", progress.sequence_length},
                      {"data_fingerprint", progress.data_fingerprint}};
  const StoredType type = StoredTypeOf(model.weights().dtype());
  CheckpointSave save;
  save.step = progress.step;
  save.state_json = state.dump();
  save.keep_last = keep_last;
  save.estimated_bytes = 3 * model.weights().num_bytes() + (int64_t{1} << 16);
  save.write = [&](CheckpointFiles& files) -> absl::Status {
    const char* dtype_name = type == StoredType::kF64 ? "float64" : "float32";
    EK_RETURN_IF_ERROR(files.AddText(
        "config.json", ToHuggingFaceConfig(model.config(), dtype_name).dump(2) + "\n"));
    EK_RETURN_IF_ERROR(files.AddSafetensors(
        "model.safetensors", NamedTensors(model.layout(), host.weights.view(), type)));
    return files.AddSafetensors("optimizer.safetensors", OptimizerTensors(model, host, type));
  };
  return store.Save(save);
}

absl::StatusOr<bool> RestoreTraining(const OpContext& context, Communicator& comm,
                                     const CheckpointStore* store, bool fallback,
                                     const TrainingProgress& expected, TrainingProgress* progress,
                                     Model& model, Optimizer& optimizer) {
  EK_ASSIGN_OR_RETURN(HostState host, HostState::Create(context, model, optimizer));
  *progress = expected;
  progress->step = progress->samples = progress->tokens = 0;
  absl::Status status;
  if (store != nullptr) {
    status = LoadNewest(*store, fallback, expected, progress, model, host);
  }
  EK_RETURN_IF_ERROR(AgreeOnStatus(comm, status, "resume"));
  int64_t counters[3] = {progress->step, progress->samples, progress->tokens};
  EK_RETURN_IF_ERROR(
      comm.Broadcast(TensorView(counters, DType::kI64, {3}), /*root=*/0, "restored position"));
  progress->step = counters[0];
  progress->samples = counters[1];
  progress->tokens = counters[2];
  if (progress->step == 0) return false;
  EK_RETURN_IF_ERROR(comm.Broadcast(host.weights.view(), 0, "restored weights"));
  EK_RETURN_IF_ERROR(comm.Broadcast(host.exp_avg.view(), 0, "restored first moments"));
  EK_RETURN_IF_ERROR(comm.Broadcast(host.exp_avg_sq.view(), 0, "restored second moments"));
  EK_RETURN_IF_ERROR(host.Upload(context));
  model.UpdateCopy(context);
  return true;
}

}  // namespace evenkeel
