#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <filesystem>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/commands.h"
#include "launch/machine.h"
#include "launch/rank_runtime.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/agreement.h"
#include "runtime/metrics/text_table.h"

namespace evenkeel {
namespace {

std::string FreeDisk() {
  std::error_code error;
  const auto space = std::filesystem::space(".", error);
  return error ? error.message() : FormatBytes(static_cast<int64_t>(space.available));
}

absl::Status Doctor() {
  return RunOnRank(RankOptions(), [](const RankRuntime& rank) -> absl::Status {
    char host[256] = "?";
    (void)gethostname(host, sizeof(host) - 1);
    const double peak = MeasurePeakFlops(rank.context);
    const std::string line =
        absl::StrFormat("%s|%d|%.0f", host, rank.context.pool.num_threads(), peak * 1e-9);
    EK_ASSIGN_OR_RETURN(const std::vector<std::string> lines,
                        AllGatherStrings(rank.comm, line, "doctor"));
    // Three reductions of 16 MiB: whether the ranks reach each other, and how fast.
    double best_seconds = 0;
    if (rank.comm.size() > 1) {
      const ArenaScope scope(rank.context.arena);
      TensorView data = rank.context.arena.AllocateZero(DType::kF32, {int64_t{4} << 20},
                                                        MemoryPurpose::kCommunication);
      for (int repeat = 0; repeat < 3; ++repeat) {
        const auto start = std::chrono::steady_clock::now();
        EK_RETURN_IF_ERROR(rank.comm.AllReduce(data, ReduceOp::kSum, "doctor's all-reduce"));
        const double seconds =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        if (repeat == 0 || seconds < best_seconds) best_seconds = seconds;
      }
    }
    if (rank.comm.rank() != 0) return absl::OkStatus();
    std::cout << VersionText() << "\n\n";
    TextTable table({{"rank"}, {"host", TextColumn::Align::kLeft}, {"threads"}, {"GFLOP/s"}},
                    "Ranks; GFLOP/s of a float32 matrix product on all its threads");
    for (size_t i = 0; i < lines.size(); ++i) {
      const size_t first = lines[i].find('|'), second = lines[i].find('|', first + 1);
      table.AddRow({absl::StrCat(i), lines[i].substr(0, first),
                    lines[i].substr(first + 1, second - first - 1), lines[i].substr(second + 1)});
    }
    std::cout << table.Render() << "\n";
    std::cout << "memory of this host    " << FormatBytes(PhysicalMemoryBytes()) << "\n"
              << "free disk here         " << FreeDisk() << "\n";
    if (rank.comm.size() > 1) {
      std::cout << absl::StrFormat("all-reduce of 16 MiB   %.1f ms\n", best_seconds * 1e3);
    } else {
      std::cout << "one rank; to check several: mpirun -np 4 evenkeel doctor\n";
    }
    return absl::OkStatus();
  });
}

}  // namespace

void AddDoctorCommand(CLI::App& app, CommandBody* body) {
  CLI::App* command =
      app.add_subcommand("doctor", "Check this machine: ranks, threads, speed, memory, disk");
  command->footer("Examples:\n  evenkeel doctor\n  mpirun -np 4 evenkeel doctor");
  command->callback([body] { *body = Doctor; });
}

}  // namespace evenkeel
