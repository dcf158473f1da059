#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/commands.h"
#include "launch/config_options.h"
#include "launch/memory_check.h"
#include "launch/run_config.h"
#include "models/model_shape.h"
#include "nlohmann/json.hpp"
#include "parallel/batch_layout.h"
#include "runtime/base/status_macros.h"
#include "runtime/metrics/human_format.h"
#include "runtime/metrics/text_table.h"
#include "runtime/tensor/memory_tracker.h"
#include "scheduler/flops.h"
#include "scheduler/memory_plan.h"

namespace evenkeel {
namespace {

struct PlanOptions {
  ConfigOptions config;
  int ranks = 1;
  bool json = false;
};

const char* DeviceText(Device device) {
  return device == Device::kCuda ? "cuda" : "cpu";
}

const char* DTypeText(DType dtype) {
  return dtype == DType::kBF16 ? "bfloat16" : dtype == DType::kF64 ? "float64" : "float32";
}

absl::Status Plan(const PlanOptions& options) {
  EK_ASSIGN_OR_RETURN(const RunConfig config,
                      ReadRunConfig(options.config.file, options.config.overrides));
  const ModelShape shape = ShapeOf(config.model);
  const int64_t sequence = config.data.sequence_length;
  const int64_t micro_tokens =
      sequence * std::min(config.train.micro_batch_size, config.train.global_batch_size);
  const MemoryPlan memory =
      PlanRankMemory(config, config.train.micro_batch_size, config.runtime.recompute);
  const StepFlops flops = TrainingFlops(shape, {sequence});
  const double per_token = flops.total() / static_cast<double>(sequence);
  int64_t most = 0, least = config.train.global_batch_size;
  for (int rank = 0; rank < options.ranks; ++rank) {
    const auto count =
        static_cast<int64_t>(MicroBatchesOfRank(0, config.train.global_batch_size,
                                                config.train.micro_batch_size, rank, options.ranks)
                                 .size());
    most = std::max(most, count);
    least = std::min(least, count);
  }
  // A ring all-reduce sends 2 (n - 1) / n of the gradients from every rank.
  const double reduced = options.ranks > 1 ? 2.0 * (options.ranks - 1) / options.ranks *
                                                 static_cast<double>(memory.gradients)
                                           : 0;
  if (options.json) {
    const nlohmann::json json = {
        {"parameters", shape.num_parameters},
        {"ranks", options.ranks},
        {"device", DeviceText(config.runtime.device)},
        {"dtype", DTypeText(ComputeDType(config.runtime))},
        {"tokens_per_step", sequence * config.train.global_batch_size},
        {"flops_per_token",
         {{"matmul", flops.matmul / static_cast<double>(sequence)},
          {"softmax_attention", flops.softmax_attention / static_cast<double>(sequence)},
          {"linear_attention", flops.linear_attention / static_cast<double>(sequence)},
          {"total", per_token}}},
        {"memory_per_rank",
         {{"weights", memory.weights},
          {"gradients", memory.gradients},
          {"optimizer", memory.optimizer},
          {"activations", memory.activations},
          {"workspace", memory.workspace},
          {"total", memory.total()}}},
        {"micro_batches", {{"most", most}, {"least", least}}},
        {"sent_bytes_per_step_and_rank", reduced}};
    std::cout << json.dump(2) << "\n";
    return absl::OkStatus();
  }
  std::cout << absl::StrFormat("%s: %s parameters, %d layers of width %d, %d tokens a sequence\n\n",
                               options.config.file,
                               FormatCount(static_cast<double>(shape.num_parameters)),
                               config.model.num_layers, config.model.hidden_size, sequence);

  TextTable work({{"FLOPs a token", TextColumn::Align::kLeft}, {"training"}, {"share"}},
                 "Forward and backward, one document a sequence, recomputation not counted");
  const auto add_flops = [&](const char* name, double value) {
    if (value <= 0) return;
    work.AddRow({name, FormatCount(value / static_cast<double>(sequence)),
                 absl::StrFormat("%.1f %%", 100 * value / flops.total())});
  };
  add_flops("matrix products", flops.matmul);
  add_flops("softmax attention", flops.softmax_attention);
  add_flops("linear attention", flops.linear_attention);
  work.AddRule();
  work.AddRow({"total", FormatCount(per_token), "100.0 %"});
  std::cout << work.Render() << "\n";

  TextTable table({{"purpose", TextColumn::Align::kLeft}, {"memory a rank"}},
                  absl::StrFormat("Memory of each of %d rank%s on %s in %s, micro-batches of %d "
                                  "tokens",
                                  options.ranks, options.ranks > 1 ? "s" : "",
                                  DeviceText(config.runtime.device),
                                  DTypeText(ComputeDType(config.runtime)), micro_tokens));
  table.AddRow({"weights", FormatBytes(memory.weights)});
  table.AddRow({"gradients", FormatBytes(memory.gradients)});
  table.AddRow({"optimizer", FormatBytes(memory.optimizer)});
  table.AddRow({"activations", FormatBytes(memory.activations)});
  table.AddRow({"workspace", FormatBytes(memory.workspace)});
  table.AddRule();
  table.AddRow({"total", FormatBytes(memory.total())});
  std::cout << table.Render() << "\n";

  std::cout << absl::StrFormat(
      "Each step: %s tokens, %s FLOPs; ",
      FormatCount(static_cast<double>(sequence * config.train.global_batch_size)),
      FormatCount(per_token * static_cast<double>(sequence * config.train.global_batch_size)));
  if (least == most) {
    std::cout << absl::StrFormat("%d micro-batch%s a rank", most, most > 1 ? "es" : "");
  } else {
    std::cout << absl::StrFormat(
        "%d to %d micro-batches a rank, so %.0f %% of the ranks' time is idle", least, most,
        100 * (1 - static_cast<double>(config.train.global_batch_size) /
                       static_cast<double>(config.train.micro_batch_size * most * options.ranks)));
  }
  std::cout << absl::StrFormat("; each rank sends %s of gradients.\n",
                               FormatBytes(static_cast<int64_t>(reduced)));
  if (most == 0 || least == 0) {
    std::cout << absl::StrFormat(
        "Some ranks have no work: raise train.global_batch_size to %d or more, or start fewer "
        "ranks.\n",
        options.ranks * config.train.micro_batch_size);
  }
  return absl::OkStatus();
}

}  // namespace

void AddPlanCommand(CLI::App& app, CommandBody* body) {
  CLI::App* command = app.add_subcommand(
      "plan", "Parameters, FLOPs and memory of a run, without starting anything");
  auto options = std::make_shared<PlanOptions>();
  AddConfigOptions(*command, &options->config);
  command->add_option("-n,--ranks", options->ranks, "Ranks to plan for")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_flag("--json", options->json, "Print JSON");
  command->footer(
      "Examples:\n"
      "  evenkeel plan --config configs/quickstart.yaml --ranks 4\n"
      "  evenkeel plan -c configs/llama3_8b.yaml -n 64 --set data.sequence_length=131072\n"
      "  evenkeel plan -c configs/llama3_8b.yaml -n 64 --set runtime.device=cuda\n"
      "\n"
      "FLOPs: 6 a parameter of matrix products and token; softmax attention 6 (Dqk + Dv) H a\n"
      "(query, key) pair, causal, per document; linear attention 12 Dqk Dv H a token.");
  command->callback([options, body] { *body = [options] { return Plan(*options); }; });
}

}  // namespace evenkeel
