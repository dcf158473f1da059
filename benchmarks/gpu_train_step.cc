// Times whole training steps of our models on one GPU, on random tokens, in the shapes and with the
// output of the peers' script: one JSON object. benchmarks/gpu.sh runs it beside them.
//
//   gpu_train_step PRESET SEQUENCE BATCH [RECOMPUTE] [STEPS] [bf16|fp8]
//
// PRESET is 160m, 1b, 3b (Llama) or tnl-1b (TransNormerLLM); a batch is one micro-batch of BATCH
// sequences, each one document; RECOMPUTE is none, mlp or layer; with fp8 the products of the
// blocks are in FP8. Model TFLOP/s count what the mathematics needs (scheduler/flops.h): causal
// pairs, no recomputation.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "launch/machine.h"
#include "launch/step_bench.h"
#include "models/model_shape.h"
#include "runtime/ops/gpu.h"
#include "runtime/ops/step_trace.h"
#include "scheduler/flops.h"

namespace evenkeel {
namespace {

struct Preset {
  const char* name;
  int64_t layers, width, heads, kv_heads, feed_forward, vocab;
  LayerKind kind;
};

constexpr Preset kPresets[] = {
    {"160m", 12, 768, 12, 12, 2048, 32000, LayerKind::kSoftmax},
    {"1b", 16, 2048, 16, 16, 5632, 32000, LayerKind::kSoftmax},
    {"3b", 28, 3072, 24, 8, 8192, 32000, LayerKind::kSoftmax},
    {"tnl-1b", 16, 2048, 16, 16, 5632, 64000, LayerKind::kLightning},
};

ModelConfig ConfigOf(const Preset& preset) {
  ModelConfig config;
  config.layer_pattern = {preset.kind};
  config.vocab_size = preset.vocab;
  config.hidden_size = preset.width;
  config.intermediate_size = preset.feed_forward;
  config.num_layers = preset.layers;
  config.num_heads = preset.heads;
  config.num_kv_heads = preset.kv_heads;
  config.tie_embeddings = false;
  return config;
}

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

template <typename T>
T Value(absl::StatusOr<T> value) {
  Check(value.status());
  return *std::move(value);
}

// Where the time of one step goes: microseconds by op, from the timeline, and their share.
void PrintProfile(OpContext context, TrainingStep& step, const PackedBatch& batch,
                  Recompute recompute) {
  const std::unique_ptr<StepTrace> trace = MakeStepTrace(context);
  context.trace = trace.get();
  const ArenaScope scope(context.arena);
  const TensorView sums = context.arena.AllocateZero(DType::kF64, {2}, MemoryPurpose::kWorkspace);
  step.ComputeGradients(context, batch, recompute, sums);
  step.Update(context, sums);
  Check(WaitForOps(context));
  std::map<std::string, std::pair<int, double>> by_name;
  for (const TraceEvent& event : trace->Take()) {
    std::string name = event.name;
    if (name.compare(0, 6, "layer ") == 0) name = "layer" + name.substr(name.rfind(' '));
    ++by_name[name].first;
    by_name[name].second += event.duration_us;
  }
  for (const auto& [name, entry] : by_name) {
    std::fprintf(stderr, "%-32s %5d calls %10.1f us\n", name.c_str(), entry.first, entry.second);
  }
}

int Run(const Preset& preset, int64_t sequence, int64_t count, const std::string& recompute_name,
        int steps, bool fp8) {
  const Recompute recompute = recompute_name == "layer" ? Recompute::kLayer
                              : recompute_name == "mlp" ? Recompute::kMlp
                                                        : Recompute::kNone;
  const ModelConfig config = ConfigOf(preset);
  const std::shared_ptr<CudaOps> gpu = Value(OpenGpu(0));
  MemoryTracker tracker;
  ThreadPool pool(8);
  const int64_t free_at_start = FactsOf(*gpu).free_bytes;
  Arena arena = Value(Arena::CreateOnGpu(DeviceOf(*gpu), free_at_start, tracker));
  const OpContext context{pool, arena, DType::kBF16, gpu.get()};
  const double peak = MeasurePeakFlops(context);

  const std::unique_ptr<TrainingStep> step =
      Value(TrainingStep::Create(context, config, fp8, tracker));
  const PackedBatch batch = RandomDocuments(sequence, count, config.vocab_size);
  const auto valid = static_cast<double>(batch.num_valid());
  std::vector<double> seconds;
  double values[2] = {0, 0};
  const auto warm_up = static_cast<int>(WarmUpSteps(context, batch.num_tokens()));
  for (int i = 1; i <= warm_up + steps; ++i) {
    const double begin = Now();
    Check(step->Run(context, batch, recompute, values));
    if (i > warm_up) seconds.push_back(Now() - begin);
  }
  if (std::getenv("EK_PROFILE") != nullptr) PrintProfile(context, *step, batch, recompute);
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  const double flops =
      TrainingFlops(ShapeOf(config), std::vector<int64_t>(static_cast<size_t>(count), sequence))
          .total();
  constexpr double kGiB = 1024.0 * 1024 * 1024;
  std::printf(
      "{\"peer\": \"evenkeel\", \"preset\": \"%s\", \"seq\": %lld, \"batch\": %lld, "
      "\"recompute\": \"%s\", \"products\": \"%s\", \"loss\": %.3f, \"grad_norm\": %.4f, "
      "\"tokens_per_s\": %.0f, "
      "\"step_ms\": %.2f, \"model_tflops\": %.1f, \"mfu\": %.3f, \"peak_GiB\": %.1f, "
      "\"device_GiB\": %.1f}\n",
      preset.name, static_cast<long long>(sequence), static_cast<long long>(count),
      recompute_name.c_str(), fp8 ? "fp8" : "bf16", values[0] / valid, std::sqrt(values[1]),
      static_cast<double>(sequence * count) / median, median * 1e3, flops / median * 1e-12,
      flops / median / peak, static_cast<double>(tracker.peak_total()) / kGiB,
      static_cast<double>(free_at_start - FactsOf(*gpu).free_bytes) / kGiB);
  return 0;
}

}  // namespace
}  // namespace evenkeel

int main(int argc, char** argv) {
  if (argc >= 4) {
    for (const evenkeel::Preset& preset : evenkeel::kPresets) {
      if (std::strcmp(preset.name, argv[1]) != 0) continue;
      return evenkeel::Run(preset, std::atoll(argv[2]), std::atoll(argv[3]),
                           argc > 4 ? argv[4] : "none", argc > 5 ? std::atoi(argv[5]) : 10,
                           argc > 6 && std::strcmp(argv[6], "fp8") == 0);
    }
  }
  std::fprintf(stderr,
               "usage: %s 160m|1b|3b|tnl-1b SEQUENCE BATCH [none|mlp|layer] [STEPS] [bf16|fp8]\n",
               argv[0]);
  return 2;
}
