// `evenkeel bench step`.
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/bench_options.h"
#include "launch/commands.h"
#include "launch/run_config.h"
#include "launch/step_bench.h"
#include "nlohmann/json.hpp"
#include "runtime/base/status_macros.h"

namespace evenkeel {
namespace {

struct StepOptions : BenchCommon {
  std::string model;
  std::vector<std::string> overrides;
  std::vector<int64_t> lengths;
  int64_t tokens = 0;
  bool profile = false;
};

const char* NameOf(Recompute recompute) {
  switch (recompute) {
    case Recompute::kNone:
      return "none";
    case Recompute::kMlp:
      return "mlp";
    case Recompute::kAllButAttention:
      return "all_but_attention";
    case Recompute::kLayer:
      return "layer";
  }
  return "";
}

void PrintProfile(const StepPoint& point) {
  for (const SpanTime& span : point.profile) {
    std::cout << absl::StrFormat("#   %-32s %5d x %12.3f ms together\n", span.name, span.calls,
                                 span.seconds * 1e3);
  }
  std::cout << std::flush;
}

absl::Status BenchStep(StepOptions options) {
  const bool on_gpu = options.device == Device::kCuda;
  // Of the machine that measures, whatever the file is meant for.
  options.overrides.push_back(on_gpu ? "runtime.device=cuda" : "runtime.device=cpu");
  EK_ASSIGN_OR_RETURN(const RunConfig config, ReadRunConfig(options.model, options.overrides));
  StepBenchOptions bench;
  bench.model = config.model;
  bench.recompute = config.runtime.recompute;
  bench.fp8 = config.runtime.fp8;
  bench.timing = options.timing;
  bench.profile = options.profile;
  bench.tokens = options.tokens > 0 ? options.tokens : on_gpu ? 16384 : 2048;
  bench.lengths = options.lengths;
  if (bench.lengths.empty()) bench.lengths = {config.data.sequence_length};
  return RunBench(options, [&](const RankRuntime& rank, double peak_flops) -> absl::Status {
    EK_RETURN_IF_ERROR(CheckStepsFit(rank, bench));
    const double unit = on_gpu ? 1e12 : 1e9;
    const char* rate = on_gpu ? "TFLOP/s" : "GFLOP/s";
    std::cout << "# " << VersionText() << "\n# training steps of " << options.model
              << ", documents of one length, medians of " << options.timing.runs
              << (options.timing.runs == 1 ? " run" : " runs") << "\n# "
              << DeviceName(rank.context);
    if (const int64_t threads = ThreadsOf(rank.context); threads > 0) {
      std::cout << ", " << threads << (threads == 1 ? " thread" : " threads");
    }
    std::cout << ", " << DTypeName(rank.context.dtype) << (bench.fp8 ? " with products in FP8" : "")
              << ", recompute " << NameOf(bench.recompute)
              << absl::StrFormat(
                     "\n# FLOPs are the model's, recomputation not counted; %%: of a large matrix "
                     "product's %.1f %s\n#\n",
                     peak_flops / unit, rate)
              << absl::StrFormat("#%9s%7s%13s%12s%12s%9s%6s%9s\n", "tokens", "docs", "gradients ms",
                                 "step ms", "tokens/s", rate, "%", "GiB");
    nlohmann::json points = nlohmann::json::array();
    EK_RETURN_IF_ERROR(
        MeasureSteps(rank, bench, [&](const StepPoint& point) {
          const double flops = point.model_flops / point.step_s;
          std::cout << absl::StrFormat("%10d%7d%13.2f%12.2f%12.0f%9.1f%6.1f%9.2f\n", point.length,
                                       point.documents, point.gradients_s * 1e3, point.step_s * 1e3,
                                       static_cast<double>(point.tokens()) / point.step_s,
                                       flops / unit, 100 * flops / peak_flops,
                                       static_cast<double>(point.peak_bytes) / (1 << 30))
                    << std::flush;
          PrintProfile(point);
          points.push_back({{"length", point.length},
                            {"documents", point.documents},
                            {"gradients_s", point.gradients_s},
                            {"step_s", point.step_s},
                            {"model_flops", point.model_flops},
                            {"peak_bytes", point.peak_bytes},
                            {"loss", point.loss}});
          for (const SpanTime& span : point.profile) {
            points.back()["profile"].push_back(
                {{"name", span.name}, {"calls", span.calls}, {"seconds", span.seconds}});
          }
        }).status());
    if (options.json.empty()) return absl::OkStatus();
    return WriteJson(options.json, {{"format", "evenkeel step times 1"},
                                    {"program", VersionText()},
                                    {"date", UtcNow()},
                                    {"model", options.model},
                                    {"device", DeviceName(rank.context)},
                                    {"threads", ThreadsOf(rank.context)},
                                    {"dtype", DTypeName(rank.context.dtype)},
                                    {"fp8", bench.fp8},
                                    {"recompute", NameOf(bench.recompute)},
                                    {"runs", options.timing.runs},
                                    {"matrix_product_flops", peak_flops},
                                    {"points", std::move(points)}});
  });
}

}  // namespace

void AddBenchStep(CLI::App& bench, CommandBody* body) {
  CLI::App* command = bench.add_subcommand(
      "step", "Whole training steps of a model on one device, on random tokens");
  auto options = std::make_shared<StepOptions>();
  command->add_option("--model", options->model, "Run config (YAML) to take the model from")
      ->required()
      ->type_name("CONFIG");
  command
      ->add_option("--set", options->overrides,
                   "Override a key of it: runtime.recompute=layer (repeatable)")
      ->allow_extra_args(false)
      ->type_name("KEY=VALUE");
  AddLengths(*command, "--lengths", &options->lengths,
             "Tokens of a document; default: the config's data.sequence_length");
  command
      ->add_option("--tokens", options->tokens,
                   "Tokens of a step, where a document has fewer; default: 16384 on cuda, 2048 on "
                   "the CPU")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  command->add_flag("--profile", options->profile,
                    "Also tell where the time of one step goes, by the spans of its timeline");
  AddCommon(*command, options.get());
  command->footer(
      "Examples:\n"
      "  evenkeel bench step --model configs/llama_1b.yaml --device cuda --lengths "
      "2048,8192,32768\n"
      "  evenkeel bench step --model configs/llama_1b.yaml --device cuda --set runtime.fp8=true\n"
      "  evenkeel bench step --model configs/quickstart.yaml --lengths 512,2048 --threads 2\n"
      "\n"
      "One rank alone with the whole model: forward and backward pass, then the norm of the\n"
      "gradient and AdamW too. GiB is the most that was in use so far.");
  command->callback([options, body] { *body = [options] { return BenchStep(*options); }; });
}

}  // namespace evenkeel
