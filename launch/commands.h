// The subcommands of the program. Each Add function declares one on the command line; when the user
// chose it, parsing leaves in `body` what it does.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"

namespace CLI {
class App;
}

namespace evenkeel {

using CommandBody = std::function<absl::Status()>;

void AddTrainCommand(CLI::App& app, CommandBody* body);
void AddEvalCommand(CLI::App& app, CommandBody* body);
void AddGenerateCommand(CLI::App& app, CommandBody* body);
void AddDataCommand(CLI::App& app, CommandBody* body);
void AddPlanCommand(CLI::App& app, CommandBody* body);
void AddSimulateCommand(CLI::App& app, CommandBody* body);
void AddConfigCommand(CLI::App& app, CommandBody* body);
void AddCheckpointCommand(CLI::App& app, CommandBody* body);
void AddDoctorCommand(CLI::App& app, CommandBody* body);
void AddBenchCommand(CLI::App& app, CommandBody* body);
void AddBenchComm(CLI::App& bench, CommandBody* body);  // a part of it
void AddBenchStep(CLI::App& bench, CommandBody* body);  // another
void AddCompletionCommand(CLI::App& app, CommandBody* body);

// "evenkeel 0.1.0", and what it was built with.
std::string VersionText();

}  // namespace evenkeel
