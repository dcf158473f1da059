// The options every subcommand that reads a run config shares.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace evenkeel {

struct ConfigOptions {
  std::string file;
  std::vector<std::string> overrides;
};

// Adds --config FILE (required) and --set KEY=VALUE (any number).
void AddConfigOptions(CLI::App& command, ConfigOptions* options);

}  // namespace evenkeel
