#include "launch/config_options.h"

#include <CLI/CLI.hpp>

namespace evenkeel {

void AddConfigOptions(CLI::App& command, ConfigOptions* options) {
  command.add_option("-c,--config", options->file, "Run config (YAML)")->required();
  command.add_option("--set", options->overrides, "Override a key: train.lr=1e-3 (repeatable)")
      ->allow_extra_args(false)
      ->type_name("KEY=VALUE");
}

}  // namespace evenkeel
