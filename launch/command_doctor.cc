#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "launch/commands.h"
#include "launch/device_option.h"
#include "launch/machine.h"
#include "launch/rank_runtime.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/with_cuda.h"
#include "runtime/comm/agreement.h"
#include "runtime/metrics/text_table.h"
#include "runtime/ops/gpu.h"

namespace evenkeel {
namespace {

constexpr TextColumn::Align kLeft = TextColumn::Align::kLeft;

std::string HostName() {
  char host[256] = "?";
  (void)gethostname(host, sizeof(host) - 1);
  return host;
}

std::string FreeDisk() {
  std::error_code error;
  const auto space = std::filesystem::space(".", error);
  return error ? error.message() : FormatBytes(static_cast<int64_t>(space.available));
}

// Cells of a table: GPU, name, compute capability, memory, what of it is free.
std::vector<std::string> CellsOf(const GpuFacts& gpu) {
  return {absl::StrCat(gpu.ordinal), gpu.name, gpu.capability, FormatBytes(gpu.total_bytes),
          gpu.free_bytes < 0 ? "?" : FormatBytes(gpu.free_bytes)};
}

std::vector<TextColumn> GpuColumns() {
  return {{"GPU"}, {"name", kLeft}, {"capability"}, {"memory"}, {"free"}};
}

// A row of the table of ranks, cells apart by '|'.
std::string RowOf(const RankRuntime& rank) {
  std::vector<std::string> cells = {HostName()};
  if (rank.context.cuda == nullptr) {
    cells.push_back(absl::StrCat(rank.context.pool.num_threads()));
    cells.push_back(absl::StrFormat("%.0f", MeasurePeakFlops(rank.context) * 1e-9));
  } else {
    // What is free is asked before the measurement takes some.
    for (std::string& cell : CellsOf(FactsOf(*rank.context.cuda))) {
      cells.push_back(std::move(cell));
    }
    cells.push_back(absl::StrFormat("%.0f", MeasurePeakFlops(rank.context) * 1e-12));
  }
  return absl::StrJoin(cells, "|");
}

TextTable RankTable(bool on_gpus, const std::vector<std::string>& rows) {
  std::vector<TextColumn> columns = {{"rank"}, {"host", kLeft}};
  if (on_gpus) {
    for (TextColumn& column : GpuColumns()) columns.push_back(std::move(column));
    columns.push_back({"TFLOP/s"});
  } else {
    columns.push_back({"threads"});
    columns.push_back({"GFLOP/s"});
  }
  TextTable table(std::move(columns),
                  on_gpus ? "Ranks; TFLOP/s of a bfloat16 matrix product"
                          : "Ranks; GFLOP/s of a float32 matrix product on all its threads");
  for (size_t i = 0; i < rows.size(); ++i) {
    std::vector<std::string> cells = absl::StrSplit(rows[i], '|');
    cells.insert(cells.begin(), absl::StrCat(i));
    table.AddRow(std::move(cells));
  }
  return table;
}

// Whether the ranks reach each other, and how fast: the best of a few reductions.
absl::StatusOr<std::string> TimeAllReduce(const RankRuntime& rank) {
  // A GPU's links need more to be busy.
  const int64_t bytes = int64_t{rank.gpu_comm == nullptr ? 16 : 256} << 20;
  Communicator& comm = rank.gpu_comm == nullptr ? rank.comm : rank.gpu_comm->world();
  const ArenaScope scope(rank.context.arena);
  const TensorView data =
      rank.context.arena.AllocateZero(DType::kF32, {bytes / 4}, MemoryPurpose::kCommunication);
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    EK_RETURN_IF_ERROR(WaitForOps(rank.context));
    EK_RETURN_IF_ERROR(rank.comm.Barrier("doctor"));
    const auto start = std::chrono::steady_clock::now();
    EK_RETURN_IF_ERROR(comm.AllReduce(data, ReduceOp::kSum, "doctor's all-reduce"));
    EK_RETURN_IF_ERROR(WaitForOps(rank.context));
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (repeat == 0 || seconds < best) best = seconds;
  }
  // A ring sends 2 (n - 1) / n of the tensor from every rank.
  const double sent = 2.0 * (comm.size() - 1) / comm.size() * static_cast<double>(bytes);
  return absl::StrFormat("all-reduce of %-8s %.1f ms, %.1f GB/s a rank\n",
                         absl::StrCat(bytes >> 20, " MiB"), best * 1e3, sent / best * 1e-9);
}

// What a run on the CPU does not show: the GPUs that it could use.
void PrintGpus() {
  if constexpr (!kWithCuda) {
    std::cout << "GPUs                   " << CudaText() << "\n";
    return;
  }
  const std::vector<GpuFacts> gpus = ListGpus();
  if (gpus.empty()) {
    std::cout << "GPUs                   none here (" << CudaText() << ")\n";
    return;
  }
  TextTable table(GpuColumns(), "\nGPUs of this host; to measure them: --device cuda");
  for (const GpuFacts& gpu : gpus) table.AddRow(CellsOf(gpu));
  std::cout << table.Render();
}

absl::Status Doctor(Device device) {
  RankOptions options;
  SetDevice(device, &options);
  return RunOnRank(options, [&](const RankRuntime& rank) -> absl::Status {
    EK_ASSIGN_OR_RETURN(const std::vector<std::string> rows,
                        AllGatherStrings(rank.comm, RowOf(rank), "doctor"));
    EK_RETURN_IF_ERROR(AgreeOnStatus(rank.comm, WaitForOps(rank.context), "matrix product"));
    std::string all_reduce = "one rank; to check several: mpirun -np 4 evenkeel doctor\n";
    if (rank.comm.size() > 1) {
      EK_ASSIGN_OR_RETURN(all_reduce, TimeAllReduce(rank));
    }
    if (rank.comm.rank() != 0) return absl::OkStatus();
    const bool on_gpus = rank.context.cuda != nullptr;
    std::cout << VersionText() << "\n\n"
              << RankTable(on_gpus, rows).Render() << "\n"
              << "memory of this host    " << FormatBytes(PhysicalMemoryBytes()) << "\n"
              << "free disk here         " << FreeDisk() << "\n"
              << all_reduce;
    if constexpr (kWithCuda) {
      if (on_gpus) {
        std::cout << "GPU software           " << CudaText() << ", NCCL " << NcclVersion() << "\n";
      }
    }
    if (!on_gpus) PrintGpus();
    return absl::OkStatus();
  });
}

}  // namespace

void AddDoctorCommand(CLI::App& app, CommandBody* body) {
  CLI::App* command =
      app.add_subcommand("doctor", "Check this machine: ranks, threads, GPUs, speed, memory, disk");
  auto device = std::make_shared<Device>(Device::kCpu);
  AddDeviceOption(*command, device.get());
  command->footer(
      "Examples:\n"
      "  evenkeel doctor\n"
      "  mpirun -np 4 evenkeel doctor\n"
      "  mpirun -np 8 evenkeel doctor --device cuda");
  command->callback([device, body] { *body = [device] { return Doctor(*device); }; });
}

}  // namespace evenkeel
