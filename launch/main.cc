// The program: parses the command line, runs a subcommand, and turns its status into an exit code.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>
#include <vector>

#include "launch/commands.h"
#include "launch/failure_report.h"
#include "runtime/base/exit_code.h"
#include "runtime/config/nearest_key.h"

namespace evenkeel {
namespace {

constexpr char kFooter[] =
    "Examples:\n"
    "  mpirun -np 4 evenkeel train --config configs/quickstart.yaml\n"
    "  evenkeel plan --config configs/llama3_8b.yaml --ranks 64\n"
    "  evenkeel generate --model runs/quickstart --prompt 'The ship'\n"
    "\n"
    "Exit codes: 0 done, 2 usage or config, 3 data, 4 checkpoint, 5 diverged, 6 time-out,\n"
    "7 peers lost, 8 out of memory, 75 stopped and saved (start the same command again).\n"
    "After Ctrl-C mpirun ends with 1, saved or not; launch/resilient.sh ends with the program's.";

// CLI11 says of a mistyped subcommand only that it was not expected.
std::string SubcommandHint(const CLI::App& app, int argc, char** argv) {
  const CLI::App* at = &app;
  for (int i = 1; i < argc && argv[i][0] != '-'; ++i) {
    std::vector<std::string> names;
    const CLI::App* next = nullptr;
    for (const CLI::App* command : at->get_subcommands({})) {
      names.push_back(command->get_name());
      if (command->get_name() == argv[i]) next = command;
    }
    if (names.empty()) return "";
    if (next == nullptr) {
      const std::string nearest = NearestWord(argv[i], names);
      return std::string("no subcommand '") + argv[i] + "'" +
             (nearest.empty() ? "" : "; did you mean '" + nearest + "'?");
    }
    at = next;
  }
  return "";
}

// An option that nothing takes may be why another one is missing, and CLI11 tells the latter alone.
std::string StrayHint(const CLI::App& app) {
  for (const CLI::App* command : app.get_subcommands()) {
    if (std::string hint = StrayHint(*command); !hint.empty()) return hint;
  }
  const std::vector<std::string> stray = app.remaining();
  if (stray.empty()) return "";
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  const std::string nearest = stray[0][0] == '-' ? NearestWord(stray[0], names) : "";
  return ", and '" + stray[0] + "' is not an argument of '" + app.get_name() + "'" +
         (nearest.empty() ? "" : "; did you mean '" + nearest + "'?");
}

int Main(int argc, char** argv) {
  CLI::App app("Evenkeel trains long-context language models on many ranks, evenly loaded.",
               "evenkeel");
  app.require_subcommand(1);
  app.set_version_flag("--version", VersionText());
  CommandBody body;
  AddTrainCommand(app, &body);
  AddEvalCommand(app, &body);
  AddGenerateCommand(app, &body);
  AddDataCommand(app, &body);
  AddPlanCommand(app, &body);
  AddSimulateCommand(app, &body);
  AddConfigCommand(app, &body);
  AddCheckpointCommand(app, &body);
  AddDoctorCommand(app, &body);
  AddBenchCommand(app, &body);
  AddCompletionCommand(app, &body);
  app.footer(kFooter);  // after the subcommands, which would inherit it
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& request) {
    return app.exit(request);
  } catch (const CLI::CallForAllHelp& request) {
    return app.exit(request);
  } catch (const CLI::CallForVersion& request) {
    return app.exit(request);
  } catch (const CLI::ParseError& error) {
    const std::string hint = SubcommandHint(app, argc, argv);
    const bool missing = error.get_exit_code() == static_cast<int>(CLI::ExitCodes::RequiredError);
    std::fprintf(stderr, "error: %s%s\nRun with --help for usage and examples.\n",
                 hint.empty() ? error.what() : hint.c_str(),
                 hint.empty() && missing ? StrayHint(app).c_str() : "");
    return static_cast<int>(ExitCode::kUsage);
  }
  const absl::Status status = body();
  ReportFailureOnce(status);
  RecordExitCode(ExitCodeOf(status));
  return static_cast<int>(ExitCodeOf(status));
}

}  // namespace
}  // namespace evenkeel

int main(int argc, char** argv) {
  return evenkeel::Main(argc, argv);
}
