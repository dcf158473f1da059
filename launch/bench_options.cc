#include "launch/bench_options.h"

#include <iostream>

#include "launch/device_option.h"
#include "launch/machine.h"
#include "launch/output_file.h"
#include "nlohmann/json.hpp"
#include "runtime/base/status_macros.h"
#include "runtime/ops/gpu.h"

namespace evenkeel {

void AddCommon(CLI::App& command, BenchCommon* options) {
  AddDeviceOption(command, &options->device);
  command.add_option("--threads", options->threads, "Threads on the CPU; 0 = all cores")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      .add_option(
          "--runs", options->timing.runs,
          "Timed runs of a shape, of which the median is told; fewer where they take over 20 s")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  command.add_option("--json", options->json, "Write the results to this file")->type_name("FILE");
}

CLI::Option* AddLengths(CLI::App& command, const char* name, std::vector<int64_t>* values,
                        const char* help) {
  return command.add_option(name, *values, help)
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->type_name("N,N,...");
}

absl::Status RunBench(
    const BenchCommon& options,
    const std::function<absl::Status(const RankRuntime&, double peak_flops)>& measure) {
  RankOptions rank_options;
  rank_options.threads = options.threads;
  SetDevice(options.device, &rank_options);
  rank_options.many_ranks = false;
  return RunOnRank(rank_options, [&](const RankRuntime& rank) -> absl::Status {
    if (rank.comm.rank() != 0) return absl::OkStatus();
    EK_RETURN_IF_ERROR(PrepareOutputFile(options.json));
    const double peak_flops = MeasurePeakFlops(rank.context);
    EK_RETURN_IF_ERROR(WaitForOps(rank.context));
    return measure(rank, peak_flops);
  });
}

int64_t ThreadsOf(const OpContext& context) {
  return context.cuda == nullptr ? context.pool.num_threads() : 0;
}

absl::Status WriteJson(const std::string& path, const nlohmann::json& json) {
  EK_RETURN_IF_ERROR(WriteTextFile(path, json.dump(2) + "\n"));
  std::cout << "# written to " << path << "\n";
  return absl::OkStatus();
}

}  // namespace evenkeel
