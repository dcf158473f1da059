#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <optional>

#include "absl/strings/str_format.h"
#include "launch/commands.h"
#include "launch/device_option.h"
#include "launch/evaluation.h"
#include "launch/model_folder.h"
#include "launch/rank_runtime.h"
#include "launch/training_data.h"
#include "models/hugging_face.h"
#include "nlohmann/json.hpp"
#include "runtime/base/status_macros.h"
#include "runtime/comm/agreement.h"

namespace evenkeel {
namespace {

struct EvalOptions {
  std::string model;
  std::string data;
  int64_t sequence_length = 0;
  int64_t max_samples = 0;
  int64_t threads = 0;
  Device device = Device::kCpu;
  bool double_precision = false;
  bool json = false;
};

std::string ToJsonText(const Evaluation& evaluation) {
  nlohmann::json json = {{"loss", evaluation.loss()},
                         {"perplexity", evaluation.perplexity()},
                         {"tokens", evaluation.tokens}};
  for (const PositionBucket& bucket : evaluation.buckets) {
    if (bucket.tokens == 0) continue;
    json["positions"].push_back({{"begin", bucket.begin},
                                 {"end", bucket.end},
                                 {"tokens", bucket.tokens},
                                 {"loss", bucket.loss_sum / static_cast<double>(bucket.tokens)}});
  }
  return json.dump() + "\n";
}

absl::Status Eval(const EvalOptions& options) {
  RankOptions rank_options;
  if (options.double_precision && options.device == Device::kCuda) {
    return absl::InvalidArgumentError("--float64 is for the cpu: cuda computes in bfloat16");
  }
  rank_options.threads = options.threads;
  SetDevice(options.device, &rank_options);
  if (options.double_precision) rank_options.dtype = DType::kF64;
  return RunOnRank(rank_options, [&](const RankRuntime& rank) -> absl::Status {
    std::optional<Model> model;
    std::optional<IndexedDataset> dataset;
    const auto open = [&]() -> absl::Status {
      EK_ASSIGN_OR_RETURN(const std::string folder, FindModelFolder(options.model));
      EK_ASSIGN_OR_RETURN(model, LoadModel(rank.context, folder, rank.tracker));
      EK_ASSIGN_OR_RETURN(dataset, OpenDataset("--data", options.data, model->config().vocab_size));
      return absl::OkStatus();
    };
    EK_RETURN_IF_ERROR(AgreeOnStatus(rank.comm, open(), "model and data"));
    // Every rank has the whole model.
    const PipelineLinks no_links;
    PipelineRun run(rank.context, *model, no_links, MeshShape(), /*pp_rank=*/0, rank.tracker);
    EK_ASSIGN_OR_RETURN(const Evaluation evaluation,
                        Evaluate(run, *dataset, options.sequence_length, options.max_samples,
                                 {rank.comm.size(), rank.comm.rank(), true}, rank.comm));
    if (rank.comm.rank() == 0) {
      std::cout << (options.json ? ToJsonText(evaluation) : RenderBuckets(evaluation))
                << std::flush;
    }
    return absl::OkStatus();
  });
}

}  // namespace

void AddEvalCommand(CLI::App& app, CommandBody* body) {
  CLI::App* command =
      app.add_subcommand("eval", "Perplexity of a model on a data set, by position too");
  auto options = std::make_shared<EvalOptions>();
  options->sequence_length = 4096;
  command->add_option("-m,--model", options->model, "Run folder, checkpoint or Hugging Face folder")
      ->required();
  command->add_option("-d,--data", options->data, "Data set: prefix of .bin and .idx")->required();
  command
      ->add_option("--sequence-length", options->sequence_length,
                   "Longer documents are cut into pieces of so many tokens")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->capture_default_str();
  command
      ->add_option("--max-samples", options->max_samples,
                   "Score only so many pieces, spread evenly; 0 = all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  AddDeviceOption(*command, &options->device);
  command->add_option("--threads", options->threads, "Threads a rank; 0 = all cores")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_flag("--float64", options->double_precision, "Compute in float64");
  command->add_flag("--json", options->json, "Print JSON");
  command->footer(
      "Examples:\n"
      "  evenkeel eval --model runs/quickstart --data data/quickstart/train_valid\n"
      "  mpirun -np 4 evenkeel eval -m runs/quickstart/checkpoints/step-00000160 -d data/x --json");
  command->callback([options, body] { *body = [options] { return Eval(*options); }; });
}

}  // namespace evenkeel
