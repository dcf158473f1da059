// The option --device of subcommands that run a model without a run config.
#pragma once

#include <CLI/CLI.hpp>

#include "launch/rank_runtime.h"

namespace evenkeel {

void AddDeviceOption(CLI::App& command, Device* device);

// Where to compute, in the dtype of that device.
void SetDevice(Device device, RankOptions* options);

}  // namespace evenkeel
