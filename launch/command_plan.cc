#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "absl/strings/str_cat.h"
#include "launch/commands.h"
#include "launch/config_options.h"
#include "launch/length_plan.h"
#include "launch/output_file.h"
#include "launch/plan_report.h"
#include "nlohmann/json.hpp"
#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"

namespace evenkeel {
namespace {

struct PlanOptions {
  ConfigOptions config;
  int64_t ranks = 0;
  LengthPlanOptions lengths;
  std::string placement = "in-order";
  bool json = false;
  std::string svg;
};

absl::Status PlanLengths(const PlanOptions& options) {
  LengthPlanOptions lengths = options.lengths;
  lengths.overrides = options.config.overrides;
  lengths.placement =
      options.placement == "head-tail" ? DocumentPlacement::kHeadTail : DocumentPlacement::kInOrder;
  EK_RETURN_IF_ERROR(PrepareOutputFile(options.svg));
  EK_ASSIGN_OR_RETURN(const LengthPlanReport report, MakeLengthPlan(lengths));
  if (!options.svg.empty()) {
    EK_RETURN_IF_ERROR(WriteTextFile(options.svg, DrawLengthPlan(report)));
  }
  std::cout << (options.json ? LengthPlanJson(report).dump() + "\n" : LengthPlanText(report));
  return absl::OkStatus();
}

absl::Status Plan(const PlanOptions& options) {
  if (!options.lengths.lengths_file.empty()) return PlanLengths(options);
  if (options.config.file.empty()) {
    return WithExitCode(
        absl::InvalidArgumentError("plan needs --config to plan a run, or --lengths to plan the "
                                   "attention of a batch; evenkeel plan --help has examples"),
        ExitCode::kUsage);
  }
  EK_ASSIGN_OR_RETURN(const RunConfig config,
                      ReadRunConfig(options.config.file, options.config.overrides));
  if (!options.svg.empty() && config.parallel.mesh.pp == 1) {
    return absl::InvalidArgumentError(
        "--svg draws the schedule of a pipeline, and parallel.pp is 1");
  }
  EK_RETURN_IF_ERROR(PrepareOutputFile(options.svg));
  EK_ASSIGN_OR_RETURN(const PlanReport report,
                      MakePlanReport(options.config.file, config, options.ranks));
  if (!options.svg.empty()) {
    EK_RETURN_IF_ERROR(WriteTextFile(options.svg, DrawTimetable(*report.timetable)));
  }
  std::cout << (options.json ? PlanJson(report).dump(2) + "\n" : PlanText(report));
  return absl::OkStatus();
}

// The form that plans a batch's attention instead of a run.
void AddLengthOptions(CLI::App& command, PlanOptions* options) {
  LengthPlanOptions& lengths = options->lengths;
  const char* const group = "Attention of a batch";
  CLI::Option* file =
      command
          .add_option("--lengths", lengths.lengths_file,
                      "Plan disaggregated attention for documents of these lengths (a JSON list)")
          ->type_name("FILE")
          ->group(group)
          ->excludes("--config")
          ->excludes("--ranks");
  const auto belongs = [&](CLI::Option* option) { return option->needs(file)->group(group); };
  file->needs(belongs(command
                          .add_option("--servers", lengths.servers,
                                      "Attention servers, which also hold the documents")
                          ->check(CLI::Range(1, 1 << 16))));
  file->needs(belongs(command
                          .add_option("--tokens-per-server", lengths.tokens_per_server,
                                      "Tokens that each of them holds")
                          ->check(CLI::Range(int64_t{1}, int64_t{1} << 32))));
  file->needs(belongs(command
                          .add_option("--model", lengths.model_file,
                                      "Run config (YAML) whose heads, divided by its parallel.tp, "
                                      "attend")
                          ->type_name("FILE")));
  belongs(command
              .add_option("--tolerance", lengths.tolerance,
                          "How far from the mean a server's load may be, as a share of it")
              ->check(CLI::Range(0.0, 1.0))
              ->capture_default_str());
  belongs(command
              .add_option("--placement", options->placement,
                          "Where a document that crosses servers lies: in-order, or head-tail, as "
                          "much of its end as of its beginning on each")
              ->check(CLI::IsMember({"in-order", "head-tail"}))
              ->capture_default_str());
}

}  // namespace

void AddPlanCommand(CLI::App& app, CommandBody* body) {
  CLI::App* command = app.add_subcommand(
      "plan",
      "FLOPs, memory, communication and schedule of a run, without starting anything; or "
      "how servers share the attention of a batch");
  auto options = std::make_shared<PlanOptions>();
  AddConfigOptions(*command, &options->config);
  command->get_option("--config")->required(false);
  command
      ->add_option(
          "-n,--ranks", options->ranks,
          "Ranks to plan for; without it, as many as the degrees of `parallel` multiply to")
      ->check(CLI::Range(1, 1 << 20));
  command->add_flag("--json", options->json, "Print JSON");
  command
      ->add_option("--svg", options->svg,
                   "Draw the schedule of a pipeline, or the servers' loads, into this file")
      ->type_name("FILE");
  AddLengthOptions(*command, options.get());
  command->footer(
      "Examples:\n"
      "  evenkeel plan --config configs/quickstart.yaml --ranks 4\n"
      "  evenkeel plan -c configs/llama3_8b.yaml -n 64 --set data.sequence_length=131072\n"
      "  evenkeel plan -c configs/llama3_8b.yaml -n 64 --set runtime.device=cuda\n"
      "  evenkeel plan -c configs/llama3_8b.yaml -n 64 --set parallel.pp=4 --set parallel.tp=8 \\\n"
      "      --set train.global_batch_size=64 --svg schedule.svg\n"
      "  evenkeel plan --lengths batch.json --servers 32 --tokens-per-server 65536 \\\n"
      "      --model configs/llama3_8b.yaml --set parallel.tp=8 --svg loads.svg\n"
      "\n"
      "FLOPs: 6 a parameter of matrix products and token; softmax attention 6 (Dqk + Dv) H a\n"
      "(query, key) pair, causal, per document; linear attention 12 Dqk Dv H a token.\n"
      "Memory and bytes sent: of the rank of its kind that needs or sends most, samples being one\n"
      "document each. docs/parallelism.md has the formulas.");
  command->callback([options, body] { *body = [options] { return Plan(*options); }; });
}

}  // namespace evenkeel
