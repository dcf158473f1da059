// Computes the loss and all gradients of small models on one GPU and writes them with everything
// that another program needs to compute the same; benchmarks/peers/gpu_model_error.py does, in
// PyTorch.
//
//   gpu_model_dump FOLDER
//
// FOLDER/MODEL/ receives config.json (models/config_json.h), batch.json (lengths, tokens, targets
// and our mean loss), weights.safetensors and gradients.safetensors. bf16 holds the weights
// exactly, so that whoever computes in bf16 begins with the same numbers.
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "models/config_json.h"
#include "models/hugging_face.h"
#include "models/model.h"
#include "nlohmann/json.hpp"
#include "runtime/base/philox.h"
#include "runtime/base/status_macros.h"
#include "runtime/checkpoint/json_file.h"
#include "runtime/checkpoint/safetensors_file.h"
#include "runtime/ops/gpu.h"
#include "runtime/ops/host_mirror.h"

namespace evenkeel {
namespace {

struct NamedConfig {
  const char* name;
  ModelConfig config;
};

std::vector<NamedConfig> Models() {
  ModelConfig base;
  base.vocab_size = 512;
  base.hidden_size = 128;
  base.intermediate_size = 256;
  base.num_layers = 4;
  base.num_heads = 4;
  // Large enough that scores and gates are far from their linear range.
  base.init_std = 0.1;
  ModelConfig llama = base;
  llama.num_kv_heads = 2;
  ModelConfig tnl = base;
  tnl.layer_pattern = {LayerKind::kLightning};
  tnl.tie_embeddings = true;
  tnl.scale_embedding = true;
  tnl.final_norm_gain = false;
  ModelConfig hybrid = base;
  hybrid.layer_pattern = {LayerKind::kLightning, LayerKind::kLightning, LayerKind::kSoftmax};
  hybrid.num_kv_heads = 2;
  hybrid.tie_embeddings = true;
  return {{"llama_gqa", llama}, {"transnormerllm", tnl}, {"hybrid", hybrid}};
}

constexpr int64_t kLengths[] = {1, 130, 500, 393};

// Random tokens; every document goes on beyond its end, and one target in six is ignored.
PackedBatch MakeBatch(int64_t vocab) {
  PackedBatch batch;
  const Philox random(5, 77);
  uint64_t drawn = 0;
  const auto draw = [&](int64_t below) {
    return static_cast<int32_t>(random.Bits(drawn++) % static_cast<uint64_t>(below));
  };
  for (const int64_t length : kLengths) {
    std::vector<int32_t> text;
    for (int64_t i = 0; i <= length; ++i) text.push_back(draw(vocab));
    std::vector<int32_t> targets(text.begin() + 1, text.end());
    text.pop_back();
    for (int32_t& target : targets) {
      if (draw(6) == 0) target = kIgnoredTarget;
    }
    batch.AppendPiece(text, targets);
  }
  return batch;
}

float RoundToBf16(float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof(word));
  word = (word + 0x7fff + ((word >> 16) & 1)) & 0xffff0000u;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

// Initial weights, with gains shaken so that no gradient is zero by symmetry.
void FillWeights(ThreadPool& pool, const ParameterLayout& layout, TensorView flat) {
  constexpr uint64_t kSeed = 1;
  layout.Initialize(pool, kSeed, flat);
  float* weights = flat.as<float>();
  for (const ParameterSpec& spec : layout.specs()) {
    const bool is_constant = spec.init == InitKind::kZero || spec.init == InitKind::kOne;
    const Philox random(kSeed, static_cast<uint64_t>(spec.offset) + 5);
    for (int64_t i = 0; i < spec.size(); ++i) {
      float& weight = weights[spec.offset + i];
      if (is_constant) {
        weight += static_cast<float>(0.3 * random.Normal(static_cast<uint64_t>(i)));
      }
      weight = RoundToBf16(weight);
    }
  }
}

absl::Status WriteBatch(const std::string& path, const PackedBatch& batch, double loss) {
  const nlohmann::json document = {
      {"lengths", kLengths}, {"tokens", batch.tokens}, {"targets", batch.targets}, {"loss", loss}};
  return WriteJsonFile(path, document, /*sync=*/false).status();
}

absl::Status Dump(const OpContext& context, MemoryTracker& tracker, const NamedConfig& named,
                  const std::string& folder) {
  EK_ASSIGN_OR_RETURN(Model model,
                      Model::Create(context, named.config, /*with_gradients=*/true, tracker));
  EK_ASSIGN_OR_RETURN(HostMirror weights, HostMirror::Create(context, model.weights()));
  FillWeights(context.pool, model.layout(), weights.view());
  EK_RETURN_IF_ERROR(weights.Upload(context));
  model.PublishWeights(context);

  const PackedBatch batch = MakeBatch(named.config.vocab_size);
  const auto valid = static_cast<double>(batch.num_valid());
  double loss_sum = 0;
  {
    const ArenaScope scope(context.arena);
    const TensorView sum = context.arena.AllocateZero(DType::kF64, {1}, MemoryPurpose::kWorkspace);
    model.ForwardBackward(context, batch, 1 / valid, Recompute::kNone, /*is_last=*/true, sum);
    EK_RETURN_IF_ERROR(ReadDoubles(context, sum, absl::MakeSpan(&loss_sum, 1)));
  }
  EK_ASSIGN_OR_RETURN(HostMirror gradients, HostMirror::Create(context, model.gradients()));
  EK_RETURN_IF_ERROR(gradients.Download(context));

  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return absl::UnavailableError(folder + ": " + error.message());
  EK_RETURN_IF_ERROR(
      WriteJsonFile(folder + "/config.json", ToJson(named.config), /*sync=*/false).status());
  EK_RETURN_IF_ERROR(WriteBatch(folder + "/batch.json", batch, loss_sum / valid));
  for (const auto& [name, mirror] :
       {std::pair<const char*, HostMirror*>{"weights", &weights}, {"gradients", &gradients}}) {
    EK_RETURN_IF_ERROR(
        WriteSafetensors(folder + "/" + name + ".safetensors",
                         NamedTensors(model.layout(), mirror->view(), StoredType::kF32))
            .status());
  }
  std::printf("%s: loss %.6f, %lld parameters\n", folder.c_str(), loss_sum / valid,
              static_cast<long long>(model.layout().num_parameters()));
  return absl::OkStatus();
}

absl::Status DumpAll(const std::string& folder) {
  EK_ASSIGN_OR_RETURN(const std::shared_ptr<CudaOps> gpu, OpenGpu(0));
  MemoryTracker tracker;
  ThreadPool pool(4);
  EK_ASSIGN_OR_RETURN(Arena arena, Arena::CreateOnGpu(DeviceOf(*gpu), int64_t{4} << 30, tracker));
  const OpContext context{pool, arena, DType::kBF16, gpu.get()};
  for (const NamedConfig& named : Models()) {
    EK_RETURN_IF_ERROR(Dump(context, tracker, named, folder + "/" + named.name));
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace evenkeel

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
    return 2;
  }
  const absl::Status status = evenkeel::DumpAll(argv[1]);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
