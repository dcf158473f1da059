#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "absl/strings/str_cat.h"
#include "launch/commands.h"
#include "launch/config_options.h"
#include "launch/plan_report.h"
#include "launch/run_folder.h"
#include "nlohmann/json.hpp"
#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"

namespace evenkeel {
namespace {

struct PlanOptions {
  ConfigOptions config;
  int64_t ranks = 0;
  bool json = false;
  std::string svg;
};

absl::Status Plan(const PlanOptions& options) {
  EK_ASSIGN_OR_RETURN(const RunConfig config,
                      ReadRunConfig(options.config.file, options.config.overrides));
  EK_ASSIGN_OR_RETURN(const PlanReport report,
                      MakePlanReport(options.config.file, config, options.ranks));
  if (!options.svg.empty()) {
    if (!report.timetable.has_value()) {
      return WithExitCode(absl::InvalidArgumentError(
                              "--svg draws the schedule of a pipeline, and parallel.pp is 1"),
                          ExitCode::kUsage);
    }
    EK_RETURN_IF_ERROR(WriteTextFile(options.svg, DrawTimetable(*report.timetable)));
  }
  std::cout << (options.json ? PlanJson(report).dump(2) + "\n" : PlanText(report));
  return absl::OkStatus();
}

}  // namespace

void AddPlanCommand(CLI::App& app, CommandBody* body) {
  CLI::App* command = app.add_subcommand(
      "plan", "FLOPs, memory, communication and schedule of a run, without starting anything");
  auto options = std::make_shared<PlanOptions>();
  AddConfigOptions(*command, &options->config);
  command
      ->add_option(
          "-n,--ranks", options->ranks,
          "Ranks to plan for; without it, as many as the degrees of `parallel` multiply to")
      ->check(CLI::Range(1, 1 << 20));
  command->add_flag("--json", options->json, "Print JSON");
  command->add_option("--svg", options->svg, "Draw the schedule of a pipeline into this file")
      ->type_name("FILE");
  command->footer(
      "Examples:\n"
      "  evenkeel plan --config configs/quickstart.yaml --ranks 4\n"
      "  evenkeel plan -c configs/llama3_8b.yaml -n 64 --set data.sequence_length=131072\n"
      "  evenkeel plan -c configs/llama3_8b.yaml -n 64 --set runtime.device=cuda\n"
      "  evenkeel plan -c configs/llama3_8b.yaml -n 64 --set parallel.pp=4 --set parallel.tp=8 \\\n"
      "      --set train.global_batch_size=64 --svg schedule.svg\n"
      "\n"
      "FLOPs: 6 a parameter of matrix products and token; softmax attention 6 (Dqk + Dv) H a\n"
      "(query, key) pair, causal, per document; linear attention 12 Dqk Dv H a token.\n"
      "Memory and bytes sent: of the rank of its kind that needs or sends most, samples being one\n"
      "document each. docs/parallelism.md has the formulas.");
  command->callback([options, body] { *body = [options] { return Plan(*options); }; });
}

}  // namespace evenkeel
