// `evenkeel bench comm`.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/comm_bench.h"
#include "launch/commands.h"
#include "launch/device_option.h"
#include "launch/output_file.h"
#include "nlohmann/json.hpp"
#include "runtime/base/status_macros.h"
#include "runtime/base/with_cuda.h"

namespace evenkeel {
namespace {

constexpr int64_t kGib = int64_t{1} << 30, kMib = int64_t{1} << 20, kKib = int64_t{1} << 10;

struct CommandOptions {
  CommBenchOptions bench;
  int64_t min_bytes = kKib;
  int64_t max_bytes = 0;  // 0: the device's default
  int64_t factor = 4;
  int64_t ranks_per_gpu = 1;
  Device device = Device::kCpu;
  std::string json;
};

std::vector<int64_t> SizesOf(const CommandOptions& options) {
  int64_t last = options.max_bytes;
  if (last == 0) last = options.device == Device::kCuda ? kGib : 16 * kMib;
  std::vector<int64_t> sizes = {std::min(options.min_bytes, last)};
  while (sizes.back() <= last / options.factor) sizes.push_back(sizes.back() * options.factor);
  return sizes;
}

// Fails on all ranks or on none: they have the same options, and the sum of what they may fill.
absl::Status CheckRanks(const RankRuntime& rank, const CommBenchOptions& bench) {
  if (rank.comm.size() < 2) {
    return absl::InvalidArgumentError(
        "one rank has nobody to talk to: mpirun -np N evenkeel bench comm");
  }
  int64_t share = rank.memory.bytes < 0 ? -1 : rank.memory.bytes / rank.memory.sharers;
  EK_RETURN_IF_ERROR(rank.comm.AllReduce(TensorView(&share, DType::kI64, {1}), ReduceOp::kMin,
                                         "memory of a rank"));
  // A GPU that does not tell how much is free says -1.
  if (share < 0 || CommBenchMemory(bench) <= share / 2) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "a rank's two buffers take %.1f GB, and half of its memory is %.1f GB: lower --max-bytes",
      static_cast<double>(CommBenchMemory(bench)) * 1e-9, static_cast<double>(share) * 0.5e-9));
}

std::string LibraryText(Device device) {
  if constexpr (kWithCuda) {
    if (device == Device::kCuda) return absl::StrCat("NCCL ", NcclVersion());
  }
  return "MPI";
}

void PrintHeader(CommOp op) {
  const bool in_place = op == CommOp::kAllReduce;
  std::printf("#\n# %s, %s\n", NameOf(op), in_place ? "in place" : "out of place");
  std::printf("#%11s %13s %7s %7s %11s %8s %8s %7s\n", "size", "count", "type", "redop", "time",
              "algbw", "busbw", "#wrong");
  std::printf("#%11s %13s %7s %7s %11s %8s %8s %7s\n", "(B)", "(elements)", "", "", "(us)",
              "(GB/s)", "(GB/s)", "");
}

void PrintRow(const CommPoint& point, int ranks) {
  const bool reduces = point.op == CommOp::kAllReduce || point.op == CommOp::kReduceScatter;
  std::printf("%12lld %13lld %7s %7s %11.2f %8.2f %8.2f %7lld\n",
              static_cast<long long>(point.bytes), static_cast<long long>(point.elements), "float",
              reduces ? "sum" : "none", point.seconds * 1e6, point.algorithm_bandwidth() * 1e-9,
              point.bus_bandwidth(ranks) * 1e-9, static_cast<long long>(point.wrong));
  std::fflush(stdout);
}

nlohmann::json JsonOf(const CommPoint& point, int ranks) {
  return {{"op", NameOf(point.op)},
          {"bytes", point.bytes},
          {"elements", point.elements},
          {"calls", point.calls},
          {"seconds", point.seconds},
          {"algbw_gb_s", point.algorithm_bandwidth() * 1e-9},
          {"busbw_gb_s", point.bus_bandwidth(ranks) * 1e-9},
          {"wrong", point.wrong}};
}

absl::Status Measure(const RankRuntime& rank, const CommandOptions& options) {
  EK_RETURN_IF_ERROR(CheckRanks(rank, options.bench));
  EK_RETURN_IF_ERROR(PrepareOutputFile(rank.comm, options.json));
  const int ranks = rank.comm.size();
  const bool tells = rank.comm.rank() == 0;
  if (tells) {
    std::cout << "# " << VersionText() << "\n# " << ranks << " ranks, " << DeviceName(rank.context)
              << ", " << LibraryText(options.device);
    if (options.ranks_per_gpu > 1) std::cout << ", " << options.ranks_per_gpu << " ranks a GPU";
    std::cout << "; time of the slowest rank, medians of " << options.bench.timing.runs
              << (options.bench.timing.runs == 1 ? " run" : " runs") << std::endl;
  }
  std::vector<CommPoint> points;
  int64_t wrong = 0;
  EK_RETURN_IF_ERROR(MeasureComm(rank, options.bench, [&](const CommPoint& point) {
    wrong += point.wrong;
    if (tells && (points.empty() || points.back().op != point.op)) PrintHeader(point.op);
    if (tells) PrintRow(point, ranks);
    points.push_back(point);
  }));
  const std::optional<LinkCost> link = LinkCostOf(points);
  if (tells && link.has_value()) {
    std::cout << absl::StrFormat("#\n# messages: latency %.2f us, %.2f GB/s; copies %.2f GB/s\n",
                                 link->latency_s * 1e6, link->bytes_per_second * 1e-9,
                                 link->copy_bytes_per_second * 1e-9);
  }
  if (tells && !options.json.empty()) {
    nlohmann::json rows = nlohmann::json::array();
    for (const CommPoint& point : points) rows.push_back(JsonOf(point, ranks));
    nlohmann::json json = {{"format", "evenkeel communication times 1"},
                           {"program", VersionText()},
                           {"date", UtcNow()},
                           {"device", DeviceName(rank.context)},
                           {"library", LibraryText(options.device)},
                           {"ranks", ranks},
                           {"ranks_per_gpu", options.ranks_per_gpu},
                           {"dtype", "float32"},
                           {"runs", options.bench.timing.runs},
                           {"points", std::move(rows)}};
    if (link.has_value()) {
      json["latency_us"] = link->latency_s * 1e6;
      json["gb_s"] = link->bytes_per_second * 1e-9;
      json["copy_gb_s"] = link->copy_bytes_per_second * 1e-9;
    }
    EK_RETURN_IF_ERROR(WriteTextFile(options.json, json.dump(2) + "\n"));
    std::cout << "# written to " << options.json << "\n";
  }
  // The counts are sums over the ranks, so all of them fail.
  if (wrong == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(wrong, " elements are wrong"));
}

absl::Status BenchComm(CommandOptions options) {
  options.bench.sizes = SizesOf(options);
  if (options.bench.ops.empty()) options.bench.ops = AllCommOps();
  RankOptions rank_options;
  SetDevice(options.device, &rank_options);
  rank_options.ranks_per_gpu = options.ranks_per_gpu;
  rank_options.threads = 1;
  return RunOnRank(rank_options, [&](const RankRuntime& rank) { return Measure(rank, options); });
}

}  // namespace

void AddBenchComm(CLI::App& bench, CommandBody* body) {
  CLI::App* command = bench.add_subcommand(
      "comm", "What ranks do together, over sizes: nccl-tests' columns, over MPI or NCCL");
  auto options = std::make_shared<CommandOptions>();
  std::map<std::string, CommOp> ops;
  for (const CommOp op : AllCommOps()) ops[NameOf(op)] = op;
  std::vector<std::string> names;
  for (const auto& [name, op] : ops) names.push_back(name);
  const auto choose = [options, ops](const std::vector<std::string>& words) {
    for (const std::string& word : words) options->bench.ops.push_back(ops.at(word));
  };
  command
      ->add_option_function<std::vector<std::string>>(
          "--ops", choose,
          "all-reduce, all-gather, reduce-scatter, all-to-all (one call), "
          "all-to-all-rounds (a call each round), send-recv (a ring), copy (within each rank); "
          "default: all")
      ->delimiter(',')
      ->check(CLI::IsMember(names))
      ->type_name("OP,OP,...");
  const auto size = [&](const char* name, int64_t* value, const char* help) {
    return command->add_option(name, *value, help)
        ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
        ->type_name("BYTES");
  };
  size("--min-bytes", &options->min_bytes, "Smallest size; also 4KB, 1MB")->default_str("1KB");
  size("--max-bytes", &options->max_bytes, "Largest size; default: 1GB on cuda, 16MB on the CPU");
  command->add_option("--factor", options->factor, "From one size to the next")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  AddDeviceOption(*command, &options->device);
  command
      ->add_option("--ranks-per-gpu", options->ranks_per_gpu,
                   "More than 1: ranks share GPUs, over sockets; only to try it")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command
      ->add_option("--runs", options->bench.timing.runs,
                   "Timed runs of a size, of which the median is told; fewer where they take over "
                   "20 s")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  command->add_option("--json", options->json, "Write the results to this file")->type_name("FILE");
  command->footer(
      "Examples:\n"
      "  mpirun -np 4 evenkeel bench comm --device cuda --json comm.json\n"
      "  mpirun -np 2 evenkeel bench comm --ops all-to-all,all-to-all-rounds --max-bytes 64MB\n"
      "  mpirun -np 8 evenkeel bench comm --ops send-recv,copy\n"
      "\n"
      "size: of the larger of a rank's two buffers; count: elements of a rank's own part. algbw\n"
      "is size / time, busbw that times 2 (n - 1) / n for an all-reduce, 1 for send-recv and\n"
      "copy, (n - 1) / n for the others. The result of each size is checked once where parts\n"
      "begin and end; if an element is wrong, the exit code is 1. With send-recv and copy the\n"
      "last line says what nvlink, network and products.copy_gb_s of a cluster's description\n"
      "stand for: the line through the shortest and the longest message, and the longest copy.");
  command->callback([options, body] { *body = [options] { return BenchComm(*options); }; });
}

}  // namespace evenkeel
