// Options that the subcommands of `evenkeel bench` share, and how they run: on rank 0 alone.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "launch/bench_measure.h"
#include "launch/rank_runtime.h"
#include "nlohmann/json_fwd.hpp"

namespace evenkeel {

struct BenchCommon {
  int64_t threads = 0;
  TimingOptions timing;
  Device device = Device::kCpu;
  std::string json;
};

// --device, --threads, --runs, --json.
void AddCommon(CLI::App& command, BenchCommon* options);

// A list of lengths, separated by commas.
CLI::Option* AddLengths(CLI::App& command, const char* name, std::vector<int64_t>* values,
                        const char* help);

// Runs measure(rank, peak FLOP/s of a matrix product) on rank 0 alone.
absl::Status RunBench(
    const BenchCommon& options,
    const std::function<absl::Status(const RankRuntime&, double peak_flops)>& measure);

// Threads of the CPU, or 0 on a GPU.
int64_t ThreadsOf(const OpContext& context);

// Writes a file of results, and says so.
absl::Status WriteJson(const std::string& path, const nlohmann::json& json);

}  // namespace evenkeel
