#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <memory>

#include "absl/strings/str_cat.h"
#include "launch/cluster_config.h"
#include "launch/commands.h"
#include "launch/enum_option.h"
#include "launch/machine.h"
#include "launch/output_file.h"
#include "launch/run_config.h"
#include "launch/simulate_presets.h"
#include "launch/simulate_report.h"
#include "launch/simulate_run.h"
#include "nlohmann/json.hpp"
#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"

namespace evenkeel {
namespace {

using Json = nlohmann::json;

struct SimulateOptions {
  // One case.
  std::string model, lengths;
  std::vector<std::string> model_overrides;
  LengthRecipe recipe = LengthRecipe::kAsIs;
  SimCase study;
  int64_t micro_batches = 0;
  bool ablations = false;
  bool dedicated = false;
  bool as_configured = false;
  int64_t steps = 5;
  std::vector<double> tolerances = {0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5};
  // Cases of a preset.
  std::optional<SimPreset> preset;
  PresetOptions presets;
  // Both.
  int64_t threads = 0;
  bool json = false;
  std::string svg;
};

const char* TitleOf(SimPreset preset) {
  switch (preset) {
    case SimPreset::k3d:
      return "Without pipelines (table 3)";
    case SimPreset::k4d:
      return "With pipelines (table 4)";
    case SimPreset::kAbsolute:
      return "Beside the authors' working results";
    case SimPreset::kAblations:
      return "Ablations";
    case SimPreset::kBeyond:
      return "Beyond the published scale";
  }
  return "";
}

absl::Status WritePicture(const std::string& folder, const std::string& name,
                          const std::string& svg) {
  return WriteTextFile(absl::StrCat(folder, "/", name), svg);
}

absl::Status SimulatePreset(const SimulateOptions& options) {
  PresetOptions presets = options.presets;
  presets.preset = *options.preset;
  EK_ASSIGN_OR_RETURN(const std::vector<PresetCase> cases, CasesOf(presets));
  EK_RETURN_IF_ERROR(PrepareOutputFolder(options.svg));
  ThreadPool threads(ThreadsPerRank(options.threads, 1));
  std::vector<StudyReport> reports;
  for (const PresetCase& preset : cases) {
    EK_ASSIGN_OR_RETURN(StudyReport report, RunStudy(preset.study, preset.systems, &threads));
    report.published = preset.published;
    report.published_seconds = preset.published_seconds;
    if (preset.ablations) {
      EK_RETURN_IF_ERROR(AddAblations(options.tolerances, &threads, &report));
    }
    reports.push_back(std::move(report));
  }
  const std::string title = TitleOf(presets.preset);
  if (options.json) {
    Json json = Json::array();
    for (const StudyReport& report : reports) json.push_back(StudyJson(report));
    std::cout << json.dump(2) << "\n";
  } else {
    std::cout << StudyTable(title, reports);
    for (const StudyReport& report : reports) {
      if (!report.variants.empty()) std::cout << "\n" << StudyText(report);
    }
  }
  if (options.svg.empty()) return absl::OkStatus();
  if (presets.preset == SimPreset::kAblations) {
    EK_RETURN_IF_ERROR(WritePicture(options.svg, "tolerance.svg", TolerancePlot(reports)));
    return WritePicture(options.svg, "variants.svg", VariantPlot(reports));
  }
  for (const std::string model : {"Llama 8B", "Llama 34B"}) {
    std::vector<StudyReport> of_model;
    for (const StudyReport& report : reports) {
      if (report.study.model_name == model) of_model.push_back(report);
    }
    if (of_model.empty()) continue;
    EK_RETURN_IF_ERROR(WritePicture(
        options.svg, absl::StrCat("speed_up_", model == "Llama 8B" ? "8b" : "34b", ".svg"),
        SpeedUpPlot(absl::StrCat(model, ": ", title), of_model)));
  }
  return absl::OkStatus();
}

absl::Status CheckCase(const SimulateOptions& options) {
  const auto needs = [](const char* option) {
    return absl::InvalidArgumentError(
        absl::StrCat(option, " is needed, or --preset for the published experiments"));
  };
  if (options.model.empty()) return needs("--model FILE");
  if (options.presets.cluster.empty()) return needs("--cluster FILE");
  if (options.lengths.empty()) return needs("--lengths FILE");
  if (options.study.gpus == 0) return needs("--gpus N");
  if (options.study.context == 0) return needs("--max-doc-len L");
  if (options.study.samples == 0) return needs("--batch B");
  if (options.dedicated && options.study.servers == 0) {
    return absl::InvalidArgumentError(
        "--owners-serve-not leaves attention to dedicated servers: give --servers N");
  }
  return absl::OkStatus();
}

absl::Status SimulateCase(const SimulateOptions& options) {
  EK_RETURN_IF_ERROR(CheckCase(options));
  SimCase study = options.study;
  EK_ASSIGN_OR_RETURN(const RunConfig config,
                      ReadRunConfig(options.model, options.model_overrides));
  study.model = config.model;
  study.model_name = std::filesystem::path(options.model).stem().string();
  EK_ASSIGN_OR_RETURN(study.cluster,
                      ReadClusterConfig(options.presets.cluster, options.presets.overrides));
  EK_ASSIGN_OR_RETURN(const std::vector<int64_t> lengths, ReadLengths(options.lengths));
  EK_RETURN_IF_ERROR(PrepareOutputFolder(options.svg));
  study.data_name = std::filesystem::path(options.lengths).stem().string();
  study.documents = PrepareLengths(lengths, options.recipe, study.context, options.presets.seed);
  study.batches = options.presets.batches;
  study.planning.tolerance = options.presets.tolerance;
  study.virtual_stages = options.presets.virtual_stages;
  study.owners_serve = !options.dedicated;
  if (options.micro_batches > 0) study.micro_batches = options.micro_batches;
  ThreadPool threads(ThreadsPerRank(options.threads, 1));
  EK_ASSIGN_OR_RETURN(StudyReport report,
                      RunStudy(study,
                               {SimSystem::kDisaggregated, SimSystem::kBalanced,
                                SimSystem::kBalancedHidden, SimSystem::kInOrder},
                               &threads));
  if (options.ablations) {
    EK_RETURN_IF_ERROR(AddAblations(options.tolerances, &threads, &report));
  }
  std::cout << (options.json ? StudyJson(report).dump(2) + "\n" : StudyText(report));
  if (options.svg.empty()) return absl::OkStatus();
  if (options.ablations) {
    EK_RETURN_IF_ERROR(WritePicture(options.svg, "tolerance.svg", TolerancePlot({report})));
    EK_RETURN_IF_ERROR(WritePicture(options.svg, "variants.svg", VariantPlot({report})));
  }
  return WritePicture(options.svg, "speed_up.svg", SpeedUpPlot(study.model_name, {report}));
}

// The layout and the batches of a run config instead of the best layout for a list of lengths.
absl::Status SimulateConfigured(const SimulateOptions& options) {
  const bool is_given =
      !options.model.empty() && !options.presets.cluster.empty() && options.study.gpus > 0;
  if (!is_given) {
    return absl::InvalidArgumentError(
        "--as-configured needs --model FILE, --cluster FILE and --gpus N");
  }
  EK_ASSIGN_OR_RETURN(const RunConfig config,
                      ReadRunConfig(options.model, options.model_overrides));
  EK_ASSIGN_OR_RETURN(const ClusterConfig cluster,
                      ReadClusterConfig(options.presets.cluster, options.presets.overrides));
  EK_ASSIGN_OR_RETURN(const RunSimulation run,
                      SimulateRun(config, cluster, options.study.gpus, options.steps));
  std::cout << (options.json ? RunSimulationJson(run).dump(2) + "\n" : RunSimulationText(run));
  return absl::OkStatus();
}

}  // namespace

void AddSimulateCommand(CLI::App& app, CommandBody* body) {
  CLI::App* command = app.add_subcommand(
      "simulate", "Time a training step with disaggregated attention on a described cluster");
  auto options = std::make_shared<SimulateOptions>();
  SimCase& study = options->study;
  const auto whole = CLI::Range(int64_t{1}, int64_t{1} << 32);
  command->add_option("-m,--model", options->model, "Run config whose model to take (YAML)")
      ->type_name("FILE");
  command
      ->add_option("--model-set", options->model_overrides,
                   "Override a key of it: model.num_layers=4 (repeatable)")
      ->allow_extra_args(false)
      ->type_name("KEY=VALUE");
  command->add_option("--cluster", options->presets.cluster, "Cluster: configs/clusters/*.yaml")
      ->type_name("FILE");
  command
      ->add_option("--set", options->presets.overrides,
                   "Override a key of the cluster: attention.forward_tflops=500 (repeatable)")
      ->allow_extra_args(false)
      ->type_name("KEY=VALUE");
  command->add_option("--lengths", options->lengths, "Lengths of documents: a JSON list")
      ->type_name("FILE");
  AddEnumOption<LengthRecipe>(
      *command, "--recipe", &options->recipe,
      "How lengths are prepared: as-is, or pretrain or prolong as published",
      {{"as-is", LengthRecipe::kAsIs},
       {"pretrain", LengthRecipe::kPretrain},
       {"prolong", LengthRecipe::kProLong}});
  command->add_option("-n,--gpus", study.gpus, "GPUs (or ranks) in all")->check(whole);
  command->add_option("--tp", study.tp, "Tensor-parallel degree")
      ->check(whole)
      ->capture_default_str();
  command->add_option("--max-doc-len", study.context, "Tokens of a sample, where documents are cut")
      ->check(whole);
  command->add_option("--batch", study.samples, "Samples a step")->check(whole);
  command->add_option("--batches", options->presets.batches, "Batches to simulate")
      ->check(whole)
      ->capture_default_str();
  command->add_option("--pp", study.pp, "Numbers of pipeline stages to try")
      ->delimiter(',')
      ->check(whole);
  command
      ->add_option("--virtual-stages", options->presets.virtual_stages,
                   "Numbers of stages a pipeline rank to try: with more than 1, interleaved 1F1B")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024));
  command->add_option("--pools", study.pools, "Numbers of pools to try dividing the ranks into")
      ->delimiter(',')
      ->check(whole);
  command
      ->add_option("--cp", study.cp,
                   "Ranks that the tokens of a replica are laid over, disaggregated; without it, "
                   "all ranks of a stage")
      ->check(whole);
  command->add_option("--micro-batches", options->micro_batches, "Of a replica; without it, tried")
      ->check(whole);
  AddEnumOption<RecomputePlan>(*command, "--recompute", &study.recompute,
                               "Activations computed again in the backward pass: none, mlp, "
                               "all_but_attention, layer",
                               {{"none", RecomputePlan::kNone},
                                {"mlp", RecomputePlan::kMlp},
                                {"all_but_attention", RecomputePlan::kAllButAttention},
                                {"layer", RecomputePlan::kLayer}});
  command->add_option("--element-bytes", study.element_bytes, "Of an activation: 2, 4 or 8")
      ->check(CLI::IsMember({2, 4, 8}))
      ->capture_default_str();
  command->add_option("--tolerance", options->presets.tolerance, "Of the attention planner")
      ->check(CLI::Range(0.0, 10.0))
      ->capture_default_str();
  AddEnumOption<MessageMode>(
      *command, "--messages", &study.mode,
      "ping-pong (beside computation), one-stream, or signal (one byte each)",
      {{"ping-pong", MessageMode::kPingPong},
       {"one-stream", MessageMode::kOneStream},
       {"signal", MessageMode::kSignal}});
  AddEnumOption<PieceOrder>(
      *command, "--order", &study.order,
      "Of a layer's pieces on a rank: ping-pong, staggered, staggered-forward",
      {{"ping-pong", PieceOrder::kPingPong},
       {"staggered", PieceOrder::kStaggered},
       {"staggered-forward", PieceOrder::kStaggeredForward}});
  command
      ->add_option("--servers", study.servers,
                   "Ranks of a tensor-parallel coordinate that only "
                   "serve attention")
      ->check(whole);
  command->add_flag("--owners-serve-not", options->dedicated,
                    "Attention runs on dedicated servers alone");
  CLI::Option* as_configured = command->add_flag(
      "--as-configured", options->as_configured,
      "Steps of the run config in its own layout, with the batches that it trains");
  command->add_option("--steps", options->steps, "Of the run, from its first one")
      ->check(whole)
      ->needs(as_configured);
  command->add_flag("--ablations", options->ablations,
                    "Also one stream, signal, no balancing, and the tolerances");
  command->add_option("--tolerances", options->tolerances, "Tolerances of the ablation")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 10.0));
  AddEnumOption<SimPreset>(
      *command, "--preset", &options->preset,
      "Published experiments: paper-3d, paper-4d, paper-absolute, paper-ablations; "
      "larger ones: beyond",
      {{"paper-3d", SimPreset::k3d},
       {"paper-4d", SimPreset::k4d},
       {"paper-absolute", SimPreset::kAbsolute},
       {"paper-ablations", SimPreset::kAblations},
       {"beyond", SimPreset::kBeyond}});
  command->add_option("--pretrain", options->presets.pretrain, "Lengths for a preset")
      ->type_name("FILE");
  command->add_option("--prolong", options->presets.prolong, "Lengths for a preset")
      ->type_name("FILE");
  command->add_option("--configs", options->presets.configs, "Folder of the presets' configs")
      ->type_name("DIR");
  command->add_option("--most-gpus", options->presets.most_gpus, "Leave out larger cases")
      ->check(whole);
  command->add_option("--seed", options->presets.seed, "Of what recipes draw")
      ->capture_default_str();
  command->add_option("--threads", options->threads, "Without it, one a core")
      ->check(CLI::Range(0, 4096));
  command->add_flag("--json", options->json, "Print JSON");
  command->add_option("--svg", options->svg, "Draw into this folder")
      ->type_name("DIR")
      ->excludes(as_configured);
  command->footer(
      "Examples:\n"
      "  evenkeel simulate --preset paper-3d --pretrain pretrain.json --prolong prolong.json\n"
      "  evenkeel simulate --preset paper-ablations --pretrain pretrain.json --svg plots\n"
      "  evenkeel simulate -m configs/llama3_8b.yaml --cluster configs/clusters/h100.yaml \\\n"
      "      --lengths pretrain.json --recipe pretrain -n 256 --max-doc-len 524288 --batch 8 \\\n"
      "      --pp 1,2,4 --virtual-stages 1,2 --ablations\n"
      "  evenkeel simulate --as-configured -m configs/tiny_llama.yaml --model-set parallel.dp=2 "
      "\\\n"
      "      --model-set parallel.attention=disaggregated -n 2 \\\n"
      "      --cluster configs/clusters/cpu_ranks.yaml\n"
      "\n"
      "Timed are the forward and backward passes, not the optimizer. Baselines get the layout of\n"
      "ranks that suits them best. docs/simulator.md says how, and how near it comes.");
  command->callback([options, body] {
    *body = [options] {
      if (options->as_configured) return SimulateConfigured(*options);
      return options->preset.has_value() ? SimulatePreset(*options) : SimulateCase(*options);
    };
  });
}

}  // namespace evenkeel
