#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/commands.h"
#include "launch/run_config.h"
#include "models/model_shape.h"
#include "runtime/base/status_macros.h"
#include "runtime/config/config_fields.h"
#include "runtime/metrics/human_format.h"
#include "runtime/metrics/text_table.h"

namespace evenkeel {
namespace {

absl::Status Check(const std::string& file, const std::vector<std::string>& overrides, bool print) {
  EK_ASSIGN_OR_RETURN(const RunConfig config, ReadRunConfig(file, overrides));
  // On as few ranks as it can have; whether it suits the job's is for the run to see.
  EK_RETURN_IF_ERROR(
      PlanParallel(config.model, config.parallel, FewestRanks(config.parallel)).status());
  if (print) {
    std::cout << ToYaml(config);
    return absl::OkStatus();
  }
  std::cout << absl::StrFormat(
      "%s is good: %s parameters, %d steps of %d x %d tokens\n", file,
      FormatCount(static_cast<double>(ShapeOf(config.model).num_parameters)), config.train.steps,
      config.train.global_batch_size, config.data.sequence_length);
  return absl::OkStatus();
}

absl::Status ListKeys() {
  RunConfig config;
  TextTable table({{"key", TextColumn::Align::kLeft},
                   {"type", TextColumn::Align::kLeft},
                   {"default", TextColumn::Align::kLeft},
                   {"meaning", TextColumn::Align::kLeft}});
  for (const KeyDescription& key :
       ListConfigKeys([&](ConfigFields& fields) { DescribeFields(fields, config); })) {
    table.AddRow({key.path, key.type, key.required ? "(required)" : key.default_value,
                  key.limits.empty() ? key.help : absl::StrCat(key.help, " (", key.limits, ")")});
  }
  std::cout << table.Render();
  return absl::OkStatus();
}

}  // namespace

void AddConfigCommand(CLI::App& app, CommandBody* body) {
  CLI::App* command = app.add_subcommand("config", "Check run configs, list their keys");
  command->require_subcommand(1);

  CLI::App* check = command->add_subcommand("check", "Report every error of a config at once");
  auto file = std::make_shared<std::string>();
  auto overrides = std::make_shared<std::vector<std::string>>();
  auto print = std::make_shared<bool>(false);
  check->add_option("file", *file, "Run config (YAML)")->required();
  check->add_option("--set", *overrides, "Override a key (repeatable)")
      ->allow_extra_args(false)
      ->type_name("KEY=VALUE");
  check->add_flag("--print", *print, "Print the whole config, defaults included");
  check->footer(
      "Examples:\n"
      "  evenkeel config check configs/quickstart.yaml\n"
      "  evenkeel config check configs/quickstart.yaml --set train.lr=1e-3 --print");
  check->callback([=] { *body = [=] { return Check(*file, *overrides, *print); }; });

  CLI::App* keys = command->add_subcommand("keys", "List every key with type, default and meaning");
  keys->footer("Examples:\n  evenkeel config keys | grep parallel");
  keys->callback([body] { *body = ListKeys; });
}

}  // namespace evenkeel
