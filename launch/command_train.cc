#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "launch/attention_server.h"
#include "launch/commands.h"
#include "launch/config_options.h"
#include "launch/machine.h"
#include "launch/memory_check.h"
#include "launch/rank_runtime.h"
#include "launch/stop_request.h"
#include "launch/trainer.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/log.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/agreement.h"

namespace evenkeel {
namespace {

absl::Status Train(const ConfigOptions& options) {
  EK_ASSIGN_OR_RETURN(const RunConfig config, ReadRunConfig(options.file, options.overrides));
  CatchStopSignals();
  RankOptions rank_options;
  rank_options.device = config.runtime.device;
  rank_options.ranks_per_gpu = config.runtime.ranks_per_gpu;
  rank_options.dtype = ComputeDType(config.runtime);
  rank_options.threads = config.runtime.threads;
  rank_options.timeout_s = config.runtime.timeout_s;
  return RunOnRank(rank_options, [&](const RankRuntime& rank) -> absl::Status {
    EK_RETURN_IF_ERROR(AgreeOnString(rank.comm, VersionText(), "program version"));
    EK_RETURN_IF_ERROR(AgreeOnString(rank.comm, ToYaml(config), "config"));
    const absl::StatusOr<ParallelPlan> plan =
        PlanParallel(config.model, config.parallel, rank.comm.size());
    EK_RETURN_IF_ERROR(AgreeOnStatus(rank.comm, plan.status(), "layout"));
    std::string warning;
    EK_RETURN_IF_ERROR(
        AgreeOnStatus(rank.comm, CheckFits(config, *plan, rank.memory, &warning), "memory"));
    if (!warning.empty()) LogWarning(warning);
    MeshRanks mesh;
    if (plan->num_dedicated > 0) {
      const bool serves = plan->is_dedicated(rank.comm.rank());
      EK_ASSIGN_OR_RETURN(mesh.comm, rank.comm.Split(serves ? 1 : 0, rank.comm.rank(), "mesh"));
      EK_ASSIGN_OR_RETURN(mesh.servers,
                          ServerLine::Create(rank.comm, serves ? nullptr : mesh.comm.get(), *plan,
                                             config.runtime.lost_after_s));
      if (serves) {
        auto server = AttentionServer::Create(config, *plan, rank, std::move(mesh.servers));
        EK_RETURN_IF_ERROR(AgreeOnStatus(rank.comm, server.status(), "start"));
        return (*server)->Run();
      }
    }
    auto trainer = Trainer::Create(config, *plan, rank, std::move(mesh));
    EK_RETURN_IF_ERROR(AgreeOnStatus(rank.comm, trainer.status(), "start"));
    EK_RETURN_IF_ERROR((*trainer)->Run());
    if (rank.comm.rank() == 0) {
      const std::optional<double> loss = (*trainer)->last_loss();
      std::cout << absl::StrCat("done: step ", (*trainer)->progress().step,
                                loss.has_value() ? absl::StrCat(", loss ", *loss) : "", ", in ",
                                config.folder, "\n\n")
                << rank.tracker.Report() << std::flush;
    }
    return absl::OkStatus();
  });
}

}  // namespace

void AddTrainCommand(CLI::App& app, CommandBody* body) {
  CLI::App* command = app.add_subcommand("train", "Train a model; start N ranks with mpirun");
  auto options = std::make_shared<ConfigOptions>();
  AddConfigOptions(*command, options.get());
  command->footer(
      "Examples:\n"
      "  mpirun -np 4 evenkeel train --config configs/quickstart.yaml\n"
      "  mpirun -np 4 evenkeel train --config configs/quickstart.yaml \\\n"
      "      --set train.steps=500 --set folder=runs/longer\n"
      "  mpirun -np 8 evenkeel train --config configs/my_run.yaml --set runtime.device=cuda\n"
      "\n"
      "The same command goes on from the run folder's newest checkpoint. To stop and save:\n"
      "  kill -USR1 $(pidof mpirun)      or      touch RUN_FOLDER/STOP\n"
      "With dedicated attention servers, launch/resilient.sh in place of mpirun goes on when one "
      "of\n"
      "them is lost.\n"
      "'evenkeel config keys' lists every key.");
  command->callback([options, body] { *body = [options] { return Train(*options); }; });
}

}  // namespace evenkeel
