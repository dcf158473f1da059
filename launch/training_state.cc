#include "launch/training_state.h"

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "launch/model_folder.h"
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

// What this rank owns of a checkpoint, on the host.
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
  std::vector<TensorView> views() { return {weights.view(), exp_avg.view(), exp_avg_sq.view()}; }
};

// The whole state on rank 0: the rank's own, where that is all, or buffers for it. Other ranks have
// none.
class WholeState {
 public:
  static absl::StatusOr<WholeState> Create(const Communicator& comm, const Model& model,
                                           const std::vector<TensorView>& mine) {
    WholeState state(model.config());
    if (comm.rank() > 0) return state;
    if (mine[0].num_elements() == state.layout_.num_elements() &&
        model.layout().num_elements() == state.layout_.num_elements()) {
      state.views_ = mine;
      return state;
    }
    for (const TensorView& view : mine) {
      EK_ASSIGN_OR_RETURN(Tensor tensor, Tensor::Create(view.dtype, {state.layout_.num_elements()},
                                                        MemoryPurpose::kWeights, *state.tracker_));
      state.tensors_.push_back(std::move(tensor));
      state.views_.push_back(state.tensors_.back().view());
    }
    return state;
  }

  const ParameterLayout& layout() const { return layout_; }
  const std::vector<TensorView>& views() const { return views_; }

 private:
  explicit WholeState(const ModelConfig& config)
      : tracker_(std::make_unique<MemoryTracker>()), layout_(config) {}

  std::unique_ptr<MemoryTracker> tracker_;  // the host's memory is not counted with the rank's
  ParameterLayout layout_;
  std::vector<Tensor> tensors_;
  std::vector<TensorView> views_;
};

constexpr size_t kWeights = 0, kExpAvg = 1, kExpAvgSq = 2;

std::vector<SafetensorsTensor> OptimizerTensors(const WholeState& state, StoredType type) {
  std::vector<SafetensorsTensor> tensors;
  for (const auto& [prefix, view] : {std::pair("exp_avg.", state.views()[kExpAvg]),
                                     std::pair("exp_avg_sq.", state.views()[kExpAvgSq])}) {
    for (auto& tensor : NamedTensors(state.layout(), view, type)) {
      tensor.name = prefix + tensor.name;
      tensors.push_back(std::move(tensor));
    }
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

// Names what differs between two models: "hidden_size 16, num_heads 2", as `mine` has it.
std::string Differences(const ModelConfig& mine, const ModelConfig& other) {
  // Every config.json of ours carries the whole model config there.
  const Json a = ToHuggingFaceConfig(mine, "").at("evenkeel");
  const Json b = ToHuggingFaceConfig(other, "").at("evenkeel");
  std::vector<std::string> texts;
  for (const auto& [key, value] : a.items()) {
    if (!b.contains(key) || b.at(key) != value) texts.push_back(key + " " + value.dump());
  }
  return absl::StrJoin(texts, ", ");
}

// `fp8_amax` stays empty if the run that saved had no FP8.
absl::StatusOr<TrainingProgress> ParseState(const OpenedCheckpoint& checkpoint,
                                            const TrainingProgress& expected,
                                            std::vector<double>* fp8_amax) {
  EK_ASSIGN_OR_RETURN(const Json json, ParseJson(checkpoint.state_json, checkpoint.folder));
  TrainingProgress progress;
  try {
    progress.step = json.at("step").get<int64_t>();
    progress.samples = json.at("samples").get<int64_t>();
    progress.tokens = json.at("tokens").get<int64_t>();
    progress.seed = json.at("seed").get<int64_t>();
    progress.sequence_length = json.at("sequence_length").get<int64_t>();
    progress.data_fingerprint = json.at("data_fingerprint").get<std::string>();
    if (json.contains("fp8_amax")) *fp8_amax = json.at("fp8_amax").get<std::vector<double>>();
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

absl::Status ReadOptimizer(const std::string& path, const WholeState& state) {
  EK_ASSIGN_OR_RETURN(const SafetensorsReader reader, SafetensorsReader::Open(path));
  for (const ParameterSpec& spec : state.layout().specs()) {
    const auto view = [&](size_t i) {
      return state.views()[i].Rows(spec.offset, spec.offset + spec.size()).Reshape(spec.shape);
    };
    EK_RETURN_IF_ERROR(reader.ReadTensor("exp_avg." + spec.name, view(kExpAvg)));
    EK_RETURN_IF_ERROR(reader.ReadTensor("exp_avg_sq." + spec.name, view(kExpAvgSq)));
  }
  return absl::OkStatus();
}

// Rank 0's part. A run without checkpoints leaves progress->step at 0.
absl::Status LoadNewest(const CheckpointStore& store, bool fallback,
                        const TrainingProgress& expected, TrainingProgress* progress,
                        std::vector<double>* fp8_amax, const ModelConfig& model,
                        const WholeState& state) {
  EK_ASSIGN_OR_RETURN(const std::vector<int64_t> steps, store.Steps());
  if (steps.empty()) return absl::OkStatus();
  EK_ASSIGN_OR_RETURN(const OpenedCheckpoint checkpoint, store.LoadLatest(fallback));
  EK_ASSIGN_OR_RETURN(const ModelConfig stored, ReadHuggingFaceConfig(checkpoint.folder));
  const std::string stored_config = ToHuggingFaceConfig(stored, "").dump();
  const std::string config = ToHuggingFaceConfig(model, "").dump();
  if (stored_config != config) {
    return Mismatch(checkpoint.folder, "model", Differences(stored, model),
                    Differences(model, stored));
  }
  EK_ASSIGN_OR_RETURN(*progress, ParseState(checkpoint, expected, fp8_amax));
  EK_RETURN_IF_ERROR(
      ReadWeights(checkpoint.folder, model, state.layout(), state.views()[kWeights]));
  return ReadOptimizer(checkpoint.folder + "/optimizer.safetensors", state);
}

absl::Status WriteCheckpoint(CheckpointStore& store, const TrainingProgress& progress,
                             int keep_last, const ModelConfig& model,
                             absl::Span<const double> fp8_amax, const WholeState& state) {
  Json json = {{"step", progress.step},
               {"samples", progress.samples},
               {"tokens", progress.tokens},
               {"seed", progress.seed},
               {"sequence_length", progress.sequence_length},
               {"data_fingerprint", progress.data_fingerprint}};
  if (!fp8_amax.empty()) json["fp8_amax"] = std::vector<double>(fp8_amax.begin(), fp8_amax.end());
  const StoredType type = StoredTypeOf(state.views()[kWeights].dtype);
  CheckpointSave save;
  save.step = progress.step;
  save.state_json = json.dump();
  save.keep_last = keep_last;
  save.estimated_bytes = 3 * state.layout().num_elements() * SizeOf(state.views()[kWeights].dtype) +
                         (int64_t{1} << 16);
  save.write = [&](CheckpointFiles& files) -> absl::Status {
    const char* dtype_name = type == StoredType::kF64 ? "float64" : "float32";
    EK_RETURN_IF_ERROR(
        files.AddText("config.json", ToHuggingFaceConfig(model, dtype_name).dump(2) + "\n"));
    EK_RETURN_IF_ERROR(files.AddSafetensors(
        "model.safetensors", NamedTensors(state.layout(), state.views()[kWeights], type)));
    return files.AddSafetensors("optimizer.safetensors", OptimizerTensors(state, type));
  };
  return store.Save(save);
}

// Hands what rank 0 has read of the scales to all. A run whose checkpoint has none, or those of
// another list of tensors, measures them anew.
absl::Status RestoreFp8Scales(const OpContext& context, Communicator& comm,
                              std::vector<double> fp8_amax, Model& model) {
  Fp8Scales* scales = model.fp8_scales();
  if (scales == nullptr) return absl::OkStatus();
  double has_them = static_cast<int64_t>(fp8_amax.size()) == scales->size() ? 1 : 0;
  EK_RETURN_IF_ERROR(comm.Broadcast(TensorView(&has_them, DType::kF64, {1}), /*root=*/0,
                                    "whether there are FP8 scales"));
  if (has_them == 0) return absl::OkStatus();
  fp8_amax.resize(static_cast<size_t>(scales->size()));
  EK_RETURN_IF_ERROR(comm.Broadcast(TensorView(fp8_amax.data(), DType::kF64, {scales->size()}),
                                    /*root=*/0, "FP8 scales"));
  return scales->Restore(context, fp8_amax);
}

}  // namespace

absl::Status SaveTraining(const OpContext& context, Communicator& comm, const Placement& placement,
                          CheckpointStore* store, const TrainingProgress& progress, int keep_last,
                          Model& model, Optimizer& optimizer) {
  // A rank that owns what another one has sent takes no copy of it to the host.
  std::optional<HostState> host;
  std::optional<WholeState> whole;
  std::vector<TensorView> mine;
  absl::Status status = [&]() -> absl::Status {
    if (comm.rank() == 0 || placement(comm.rank()).is_source) {
      EK_ASSIGN_OR_RETURN(host, HostState::Create(context, model, optimizer));
      EK_RETURN_IF_ERROR(host->Download(context));
      mine = host->views();
    }
    EK_ASSIGN_OR_RETURN(whole, WholeState::Create(comm, model, mine));
    return absl::OkStatus();
  }();
  EK_RETURN_IF_ERROR(AgreeOnStatus(comm, status, "room for a checkpoint"));
  EK_RETURN_IF_ERROR(GatherState(comm, placement, whole->layout(), mine, whole->views()));
  if (store != nullptr) {
    const Fp8Scales* scales = model.fp8_scales();
    status =
        WriteCheckpoint(*store, progress, keep_last, model.config(),
                        scales == nullptr ? absl::Span<const double>() : scales->known(), *whole);
  }
  return AgreeOnStatus(comm, status, "checkpoint");
}

absl::StatusOr<bool> RestoreTraining(const OpContext& context, Communicator& comm,
                                     const Placement& placement, const CheckpointStore* store,
                                     bool fallback, const TrainingProgress& expected,
                                     TrainingProgress* progress, Model& model,
                                     Optimizer& optimizer) {
  EK_ASSIGN_OR_RETURN(HostState host, HostState::Create(context, model, optimizer));
  const std::vector<TensorView> mine = host.views();
  absl::StatusOr<WholeState> whole = WholeState::Create(comm, model, mine);
  *progress = expected;
  progress->step = progress->samples = progress->tokens = 0;
  absl::Status status = whole.status();
  std::vector<double> fp8_amax;
  if (store != nullptr && status.ok()) {
    status = LoadNewest(*store, fallback, expected, progress, &fp8_amax, model.config(), *whole);
  }
  EK_RETURN_IF_ERROR(AgreeOnStatus(comm, status, "resume"));
  int64_t counters[3] = {progress->step, progress->samples, progress->tokens};
  EK_RETURN_IF_ERROR(
      comm.Broadcast(TensorView(counters, DType::kI64, {3}), /*root=*/0, "restored position"));
  progress->step = counters[0];
  progress->samples = counters[1];
  progress->tokens = counters[2];
  if (progress->step == 0) return false;
  EK_RETURN_IF_ERROR(ScatterState(comm, placement, whole->layout(), whole->views(), mine));
  EK_RETURN_IF_ERROR(host.Upload(context));
  model.PublishWeights(context);
  EK_RETURN_IF_ERROR(RestoreFp8Scales(context, comm, std::move(fp8_amax), model));
  return true;
}

absl::Status InitializeWeights(const OpContext& context, Communicator& comm,
                               const Placement& placement, uint64_t seed, const std::string& folder,
                               Model& model) {
  if (folder.empty()) {
    EK_RETURN_IF_ERROR(model.layout().InitializeOnDevice(context, seed, model.store().owned(),
                                                         model.weights().view()));
    model.PublishWeights(context);
    return absl::OkStatus();
  }
  EK_ASSIGN_OR_RETURN(HostMirror weights, HostMirror::Create(context, model.weights()));
  const std::vector<TensorView> mine = {weights.view()};
  absl::StatusOr<WholeState> whole = WholeState::Create(comm, model, mine);
  absl::Status status = whole.status();
  if (status.ok() && comm.rank() == 0) {
    const auto found = FindModelFolder(folder);
    status = found.ok()
                 ? ReadWeights(*found, model.config(), whole->layout(), whole->views()[kWeights])
                 : found.status();
    if (!status.ok()) {
      status = WithExitCode(
          absl::Status(status.code(),
                       absl::StrCat("train.init_from: ", std::string(status.message()))),
          ExitCodeOf(status));
    }
  }
  EK_RETURN_IF_ERROR(AgreeOnStatus(comm, status, "initial weights"));
  EK_RETURN_IF_ERROR(ScatterState(comm, placement, whole->layout(), whole->views(), mine));
  EK_RETURN_IF_ERROR(weights.Upload(context));
  model.PublishWeights(context);
  return absl::OkStatus();
}

}  // namespace evenkeel
