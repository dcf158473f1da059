#include <CLI/CLI.hpp>
#include <algorithm>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "launch/attention_bench.h"
#include "launch/bench_options.h"
#include "launch/commands.h"
#include "launch/linear_bench.h"
#include "launch/run_config.h"
#include "nlohmann/json.hpp"
#include "runtime/base/status_macros.h"
#include "runtime/ops/gpu.h"

namespace evenkeel {
namespace {

constexpr int64_t kMaxShard = 16384;  // queries of the longest shard, unless it is a whole document
constexpr int64_t kMostSequences = 256;  // of a step of decoding

struct BenchOptions : BenchCommon {
  std::string model;
  std::vector<std::string> overrides;
  int64_t heads = 0;  // 0: the model's
  int64_t kv_heads = 0;
  int64_t head_size = 0;
  int64_t max_length = 0;  // 0: the device's default
  std::vector<int64_t> q_lens;
  std::vector<int64_t> lengths;  // of keys, or of documents
  std::vector<int64_t> sequences;
};

// Fills in what the options leave to the model: heads of one tensor-parallel rank.
absl::Status TakeFromModel(LayerKind kind, BenchOptions* options) {
  if (options->model.empty()) {
    if (options->heads == 0 || options->head_size == 0) {
      return absl::InvalidArgumentError("which heads? Give --model, or --heads and --head-size");
    }
  } else {
    EK_ASSIGN_OR_RETURN(const RunConfig config, ReadRunConfig(options->model, options->overrides));
    const ModelConfig& model = config.model;
    if (!model.has_kind(kind)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: no layer is of the kind `%s`", options->model, NameOf(kind)));
    }
    const int64_t tp = config.parallel.mesh.tp;
    if (model.num_heads % tp != 0) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "%s: parallel.tp %d does not divide the %d heads", options->model, tp, model.num_heads));
    }
    if (options->heads == 0) {
      options->heads = model.num_heads / tp;
      // Fewer than the ranks are repeated.
      if (options->kv_heads == 0) {
        options->kv_heads = std::max<int64_t>(1, model.kv_heads() / tp);
      }
    }
    if (options->head_size == 0) options->head_size = model.head_size();
  }
  if (options->kv_heads == 0) options->kv_heads = options->heads;
  if (options->heads % options->kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%d heads are no multiple of %d key/value heads", options->heads, options->kv_heads));
  }
  if (options->device == Device::kCuda &&
      (options->head_size % 8 != 0 || options->head_size > 256)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "head size %d: kernels for cuda take multiples of 8 up to 256", options->head_size));
  }
  return absl::OkStatus();
}

// 128, 256, ... up to `last`; `last` alone if it is less.
std::vector<int64_t> PowersOfTwo(int64_t last) {
  std::vector<int64_t> lengths = {std::min<int64_t>(128, last)};
  while (2 * lengths.back() <= last) lengths.push_back(2 * lengths.back());
  return lengths;
}

// What the numbers of a table are of: device, dtype, heads, the product they are compared with.
void PrintPreamble(const RankRuntime& rank, const BenchOptions& options, const BenchTable& table,
                   double peak_flops, const char* what, const char* flops) {
  const OpContext& context = rank.context;
  std::cout << "# " << VersionText() << "\n# " << what << ", medians of " << options.timing.runs
            << (options.timing.runs == 1 ? " run" : " runs") << "\n# " << DeviceName(context);
  if (context.cuda == nullptr) {
    std::cout << ", " << context.pool.num_threads()
              << (context.pool.num_threads() == 1 ? " thread" : " threads");
  }
  std::cout << ", " << DTypeName(context.dtype) << ", " << options.heads << " heads of "
            << options.head_size;
  if (options.kv_heads != options.heads) std::cout << ", " << options.kv_heads << " of keys";
  std::cout << "\n# " << flops << "\n# %: of a large matrix product's "
            << table.RateText(peak_flops) << "\n#\n";
  table.PrintHeader();
}

absl::Status BenchAttention(BenchOptions options) {
  EK_RETURN_IF_ERROR(TakeFromModel(LayerKind::kSoftmax, &options));
  AttentionBenchOptions bench;
  bench.heads = options.heads;
  bench.kv_heads = options.kv_heads;
  bench.head_size = options.head_size;
  bench.timing = options.timing;
  int64_t longest = options.max_length;
  if (longest == 0) longest = options.device == Device::kCuda ? 131072 : 8192;
  bench.kv_lens = options.lengths;
  if (bench.kv_lens.empty()) bench.kv_lens = PowersOfTwo(longest);
  bench.q_lens = options.q_lens;
  if (bench.q_lens.empty()) bench.q_lens = PowersOfTwo(kMaxShard);
  const int64_t most_keys = *std::max_element(bench.kv_lens.begin(), bench.kv_lens.end());
  if (!options.q_lens.empty()) {
    for (const int64_t q_len : bench.q_lens) {
      if (q_len <= most_keys) continue;
      return absl::InvalidArgumentError(
          absl::StrFormat("--q-lens: %d queries need as many keys, and the most asked for are %d",
                          q_len, most_keys));
    }
  }
  return RunBench(options, [&](const RankRuntime& rank, double peak_flops) -> absl::Status {
    const BenchTable table(rank.context, {"queries", "keys", "tasks"}, peak_flops);
    PrintPreamble(rank, options, table, peak_flops,
                  "causal softmax attention, a launch of many tasks of one shape",
                  "FLOPs of a (query, key) pair and head of D: 4 D forward, 10 D backward");
    AttentionCostFile file;
    EK_ASSIGN_OR_RETURN(
        file.points, MeasureAttention(rank, bench, [&](const AttentionCostPoint& point) {
          const double pairs =
              static_cast<double>(point.tasks) * CausalPairs(point.q_len, point.kv_len);
          table.PrintRow(
              {point.q_len, point.kv_len, point.tasks},
              {point.forward_s_per_pair * pairs, AttentionFlops(bench, point, true, false)},
              {point.backward_s_per_pair * pairs, AttentionFlops(bench, point, false, true)},
              {point.both_s_per_pair * pairs, AttentionFlops(bench, point, true, true)});
        }));
    if (options.json.empty()) return absl::OkStatus();
    file.program = VersionText();
    file.date = UtcNow();
    file.device = DeviceName(rank.context);
    file.threads = ThreadsOf(rank.context);
    file.dtype = DTypeName(rank.context.dtype);
    file.heads = bench.heads;
    file.kv_heads = bench.kv_heads;
    file.head_size = bench.head_size;
    file.runs = options.timing.runs;
    file.matrix_product_flops = peak_flops;
    return WriteJson(options.json, ToJson(file));
  });
}

// The sequences of steps of decoding: those asked for, or 1, 4, ... as far as memory allows.
absl::Status ChooseSequences(const RankRuntime& rank, LinearBenchOptions* bench) {
  for (const int64_t n : bench->sequences) EK_RETURN_IF_ERROR(CheckDecodeFits(rank, *bench, n));
  if (!bench->sequences.empty()) return absl::OkStatus();
  for (int64_t n = 1; n <= kMostSequences && CheckDecodeFits(rank, *bench, n).ok(); n *= 4) {
    bench->sequences.push_back(n);
  }
  return absl::OkStatus();
}

// Prints a table, and returns its numbers for the file.
absl::StatusOr<nlohmann::json> BenchDecode(const RankRuntime& rank,
                                           const LinearBenchOptions& bench) {
  std::cout << "#\n# a step of decoding: a token of each sequence; GB/s of states, read and "
               "written in place\n"
            << "# sequences         ms      GB/s     ktok/s\n";
  nlohmann::json points = nlohmann::json::array();
  EK_RETURN_IF_ERROR(
      MeasureDecode(rank, bench, [&](const DecodePoint& point) {
        const double bytes = 2 * DecodeStateBytes(rank.context, bench, point.sequences);
        std::cout << absl::StrFormat("%11d %10.4f %9.1f %10.1f\n", point.sequences,
                                     point.step_s * 1e3, bytes / point.step_s * 1e-9,
                                     static_cast<double>(point.sequences) / point.step_s * 1e-3)
                  << std::flush;
        points.push_back({{"sequences", point.sequences}, {"step_s", point.step_s}});
      }).status());
  return points;
}

absl::Status BenchLinear(BenchOptions options) {
  EK_RETURN_IF_ERROR(TakeFromModel(LayerKind::kLightning, &options));
  options.kv_heads = options.heads;
  LinearBenchOptions bench;
  bench.heads = options.heads;
  bench.head_size = options.head_size;
  bench.timing = options.timing;
  int64_t longest = options.max_length;
  if (longest == 0) longest = options.device == Device::kCuda ? 524288 : 65536;
  bench.sequences = options.sequences;
  bench.lengths = options.lengths;
  if (bench.lengths.empty()) bench.lengths = PowersOfTwo(longest);
  return RunBench(options, [&](const RankRuntime& rank, double peak_flops) -> absl::Status {
    EK_RETURN_IF_ERROR(ChooseSequences(rank, &bench));
    const BenchTable table(rank.context, {"tokens", "docs", "ktok/s"}, peak_flops);
    PrintPreamble(rank, options, table, peak_flops,
                  "lightning attention, documents of one length; ktok/s forward and backward",
                  "FLOPs of a token and head of D: 4 D D forward, 12 D D backward");
    nlohmann::json points = nlohmann::json::array();
    EK_RETURN_IF_ERROR(MeasureLinear(rank, bench, [&](const LinearPoint& point) {
                         const double rate = static_cast<double>(point.tokens()) / point.both_s;
                         table.PrintRow(
                             {point.length, point.documents, static_cast<int64_t>(rate * 1e-3)},
                             {point.forward_s, LinearFlops(bench, point, true, false)},
                             {point.backward_s, LinearFlops(bench, point, false, true)},
                             {point.both_s, LinearFlops(bench, point, true, true)});
                         const auto tokens = static_cast<double>(point.tokens());
                         points.push_back({{"length", point.length},
                                           {"documents", point.documents},
                                           {"forward_s_per_token", point.forward_s / tokens},
                                           {"backward_s_per_token", point.backward_s / tokens},
                                           {"both_s_per_token", point.both_s / tokens}});
                       }).status());
    EK_ASSIGN_OR_RETURN(nlohmann::json steps, BenchDecode(rank, bench));
    if (options.json.empty()) return absl::OkStatus();
    return WriteJson(options.json, {{"format", "evenkeel linear attention times 1"},
                                    {"program", VersionText()},
                                    {"date", UtcNow()},
                                    {"device", DeviceName(rank.context)},
                                    {"threads", ThreadsOf(rank.context)},
                                    {"dtype", DTypeName(rank.context.dtype)},
                                    {"heads", bench.heads},
                                    {"head_size", bench.head_size},
                                    {"runs", options.timing.runs},
                                    {"matrix_product_flops", peak_flops},
                                    {"points", std::move(points)},
                                    {"decode", std::move(steps)}});
  });
}

CLI::Option* AddLength(CLI::App& command, const char* name, int64_t* value, const char* help) {
  return command.add_option(name, *value, help)->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
}

// Options of what attention is measured for.
void AddHeads(CLI::App& command, BenchOptions* options) {
  CLI::Option* model =
      command
          .add_option("--model", options->model,
                      "Run config (YAML) to take the heads from: those of one tensor-parallel rank")
          ->type_name("CONFIG");
  command
      .add_option("--set", options->overrides, "Override a key of it: parallel.tp=8 (repeatable)")
      ->allow_extra_args(false)
      ->type_name("KEY=VALUE")
      ->needs(model);
  const CLI::Range heads(int64_t{1}, int64_t{1} << 16);
  command.add_option("--heads", options->heads, "Query heads, instead of the model's")
      ->check(heads);
  command.add_option("--head-size", options->head_size, "Of queries, keys and values")
      ->check(heads);
  AddCommon(command, options);
}

void AddAttention(CLI::App& bench, CommandBody* body) {
  CLI::App* command = bench.add_subcommand(
      "attention", "Softmax attention over lengths of queries and keys: the planner's cost grid");
  auto options = std::make_shared<BenchOptions>();
  AddHeads(*command, options.get());
  command
      ->add_option("--kv-heads", options->kv_heads,
                   "Key/value heads; default: the model's, or as --heads")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 16));
  AddLengths(*command, "--q-lens", &options->q_lens,
             "Queries of a task, beside whole documents; default: 128, 256, ... 16384");
  CLI::Option* keys = AddLengths(*command, "--kv-lens", &options->lengths,
                                 "Keys of a task; default: 128, 256, ... up to --max-kv");
  AddLength(*command, "--max-kv", &options->max_length,
            "Most keys of a task; default: 131072 on cuda, 8192 on the CPU")
      ->excludes(keys);
  command->footer(
      "Examples:\n"
      "  evenkeel bench attention --model configs/llama3_8b.yaml --device cuda --json h100.json\n"
      "  evenkeel bench attention --model configs/llama_34b.yaml --set parallel.tp=8 --device "
      "cuda\n"
      "  evenkeel bench attention --heads 8 --kv-heads 2 --head-size 64 --max-kv 4096 --threads 1\n"
      "\n"
      "A task is a shard of queries with its whole key prefix. Every launch has many tasks of one\n"
      "shape, as an attention server's has, and as many keys of their own as memory allows; key\n"
      "gradients are added up in float32. The file holds seconds a (query, key) pair, all heads,\n"
      "for each shape, forward and backward: planning and simulation read it.");
  command->callback([options, body] { *body = [options] { return BenchAttention(*options); }; });
}

void AddLinear(CLI::App& bench, CommandBody* body) {
  CLI::App* command =
      bench.add_subcommand("linear", "Lightning attention over lengths of documents, and decoding");
  auto options = std::make_shared<BenchOptions>();
  AddHeads(*command, options.get());
  CLI::Option* lengths = AddLengths(*command, "--lengths", &options->lengths,
                                    "Tokens of a document; default: 128, 256, ... --max-length");
  AddLength(*command, "--max-length", &options->max_length,
            "Longest document; default: 524288 on cuda, 65536 on the CPU")
      ->excludes(lengths);
  AddLengths(
      *command, "--sequences", &options->sequences,
      "Sequences of a step of decoding; default: 1, 4, 16, 64, 256, as far as memory allows");
  command->footer(
      "Examples:\n"
      "  evenkeel bench linear --model configs/transnormerllm_1b.yaml --device cuda\n"
      "  evenkeel bench linear --heads 4 --head-size 64 --lengths 1024,16384 --threads 1\n"
      "\n"
      "A launch has documents of one length, enough to fill the device. The time a token takes\n"
      "should not grow with the length. A step of decoding takes a token of each sequence and\n"
      "reads and writes every state once; those of few sequences stay in the device's caches.");
  command->callback([options, body] { *body = [options] { return BenchLinear(*options); }; });
}

}  // namespace

void AddBenchCommand(CLI::App& app, CommandBody* body) {
  CLI::App* command = app.add_subcommand(
      "bench", "Time attention, training steps and communication of this machine's devices");
  command->require_subcommand(1);
  AddAttention(*command, body);
  AddLinear(*command, body);
  AddBenchStep(*command, body);
  AddBenchComm(*command, body);
}

}  // namespace evenkeel
