#include "launch/length_plan.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "launch/parallel_config.h"
#include "launch/run_config.h"
#include "models/model_shape.h"
#include "nlohmann/json.hpp"
#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"
#include "runtime/checkpoint/json_file.h"

namespace evenkeel {
namespace {

using Json = nlohmann::json;

constexpr int kPlannings = 5;                         // that are timed
constexpr int64_t kElementBytes = 2, kWideBytes = 4;  // bf16, float32
constexpr int64_t kMostTokens = int64_t{1} << 40;     // of a document: more is no length

absl::Status BadLengths(const std::string& file, const std::string& what) {
  return WithExitCode(
      absl::InvalidArgumentError(absl::StrCat(
          file, ": ", what, "; it has to be a JSON list of document lengths such as [812, 65536]")),
      ExitCode::kData);
}

absl::StatusOr<std::vector<int64_t>> ReadLengths(const std::string& file) {
  absl::StatusOr<Json> json = ReadJsonFile(file);
  if (!json.ok()) return WithExitCode(json.status(), ExitCode::kData);
  if (!json->is_array()) return BadLengths(file, absl::StrCat("is a JSON ", json->type_name()));
  std::vector<int64_t> lengths;
  for (size_t i = 0; i < json->size(); ++i) {
    const Json& value = (*json)[i];
    const bool good = value.is_number_integer() && value >= 1 && value <= kMostTokens;
    if (!good)
      return BadLengths(file, absl::StrCat("number ", i, " of the list is ", value.dump()));
    lengths.push_back(value.get<int64_t>());
  }
  return lengths;
}

absl::Status CheckTokens(const LengthPlanOptions& options, const std::vector<int64_t>& lengths) {
  double tokens = 0;  // a sum of any lengths
  for (const int64_t length : lengths) tokens += static_cast<double>(length);
  const int64_t wanted = options.servers * options.tokens_per_server;
  if (tokens == static_cast<double>(wanted)) return absl::OkStatus();
  const bool fits = tokens < 1e18;
  return WithExitCode(
      absl::InvalidArgumentError(absl::StrCat(
          options.lengths_file, ": its documents have ",
          fits ? absl::StrCat(static_cast<int64_t>(tokens)) : absl::StrCat(tokens), " tokens, but ",
          options.servers, " servers of ", options.tokens_per_server, " tokens hold ", wanted,
          "; cut or add documents, or change --servers or "
          "--tokens-per-server")),
      ExitCode::kUsage);
}

// The first layer with softmax attention over whole documents, of a tensor-parallel rank.
absl::StatusOr<LayerShape> ReadLayer(const LengthPlanOptions& options) {
  EK_ASSIGN_OR_RETURN(const RunConfig config, ReadRunConfig(options.model_file, options.overrides));
  ParallelConfig parallel = config.parallel;
  parallel.mesh = {1, 1, 1, config.parallel.mesh.tp};
  parallel.virtual_stages = 1;
  parallel.layers_per_stage.clear();
  EK_ASSIGN_OR_RETURN(const ParallelPlan plan,
                      PlanParallel(config.model, parallel, parallel.mesh.tp));
  const ModelShape shape = ShapeOf(plan.model, plan.PartOf({0, 0, 0, 0}));
  for (const LayerShape& layer : shape.layers) {
    if (!layer.is_linear && layer.block_size == 0) return layer;
  }
  return WithExitCode(
      absl::InvalidArgumentError(absl::StrCat(
          options.model_file,
          ": no layer of the model has softmax attention, the only kind that is disaggregated; "
          "choose a config with `softmax` in model.layer_pattern")),
      ExitCode::kUsage);
}

AttentionTokenBytes BytesOf(const LayerShape& layer) {
  AttentionTokenBytes bytes;
  bytes.q = layer.num_heads * layer.qk_size * kElementBytes;
  bytes.kv = layer.kv_width() * kElementBytes;
  bytes.out = layer.num_heads * layer.v_size * kElementBytes;
  bytes.lse = layer.num_heads * kWideBytes;
  bytes.kv_gradient = layer.kv_width() * kWideBytes;
  return bytes;
}

// Of the links from owners to servers: `there` bytes go along them, `back` the other way.
RankBytes BytesOver(const AttentionPool& pool, const std::vector<AttentionLink>& links,
                    std::pair<int64_t, int64_t> there, std::pair<int64_t, int64_t> back) {
  const auto ranks = static_cast<size_t>(pool.num_ranks);
  RankBytes bytes{std::vector<int64_t>(ranks, 0), std::vector<int64_t>(ranks, 0)};
  for (const AttentionLink& link : links) {
    const auto from = static_cast<size_t>(link.from), to = static_cast<size_t>(link.to);
    const int64_t out = link.q_tokens * there.first + link.kv_tokens * there.second;
    const int64_t in = link.q_tokens * back.first + link.kv_tokens * back.second;
    bytes.send[from] += out;
    bytes.recv[to] += out;
    bytes.send[to] += in;
    bytes.recv[from] += in;
  }
  return bytes;
}

// What of each server's load is for queries of its own.
std::vector<double> OwnLoad(const AttentionPool& pool, const AttentionCost& cost,
                            const DisaggregationPlan& plan) {
  std::vector<double> own(plan.load.size(), 0);
  for (const ServerTask& task : plan.tasks) {
    const PooledDocument& document = pool.documents[static_cast<size_t>(task.document)];
    for (int32_t i = 0; i < document.num_pieces; ++i) {
      const DocumentPiece& piece = pool.pieces[static_cast<size_t>(document.first_piece + i)];
      const int64_t begin = std::max(piece.begin, task.q_begin);
      const int64_t end = std::min(piece.begin + piece.length, task.kv_len());
      if (piece.owner != task.server || begin >= end) continue;
      own[static_cast<size_t>(task.server)] += cost.Seconds(end - begin, end);
    }
  }
  return own;
}

double MeanOf(const std::vector<double>& load) {
  return std::accumulate(load.begin(), load.end(), 0.0) / static_cast<double>(load.size());
}

}  // namespace

double LengthPlanReport::HeaviestToMean(const DisaggregationPlan& plan) {
  return *std::max_element(plan.load.begin(), plan.load.end()) / MeanOf(plan.load);
}

double LengthPlanReport::MeanToLightest(const DisaggregationPlan& plan) {
  const double lightest = *std::min_element(plan.load.begin(), plan.load.end());
  return lightest > 0 ? MeanOf(plan.load) / lightest : std::numeric_limits<double>::infinity();
}

absl::StatusOr<LengthPlanReport> MakeLengthPlan(const LengthPlanOptions& options) {
  LengthPlanReport report;
  report.options = options;
  EK_ASSIGN_OR_RETURN(const std::vector<int64_t> lengths, ReadLengths(options.lengths_file));
  EK_RETURN_IF_ERROR(CheckTokens(options, lengths));
  EK_ASSIGN_OR_RETURN(const LayerShape layer, ReadLayer(options));
  report.num_heads = layer.num_heads;
  report.num_kv_heads = layer.num_kv_heads;
  report.qk_size = layer.qk_size;
  report.v_size = layer.v_size;
  report.pool =
      PlaceDocuments(lengths, options.servers, options.tokens_per_server, options.placement);
  report.pool.bytes = BytesOf(layer);
  const AttentionCost cost = AttentionCost::PerPair(
      static_cast<double>(2 * (layer.qk_size + layer.v_size) * layer.num_heads));
  DisaggregationOptions planning;
  planning.tolerance = options.tolerance;
  std::vector<double> milliseconds;
  for (int i = 0; i < kPlannings; ++i) {
    const auto start = std::chrono::steady_clock::now();
    report.after = PlanDisaggregation(report.pool, cost, planning);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    milliseconds.push_back(took.count());
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  report.planning_ms = milliseconds[kPlannings / 2];
  report.before = PlanInPlace(report.pool, cost);
  report.own_load = OwnLoad(report.pool, cost, report.after);
  const std::vector<AttentionLink> links = LinksOf(report.pool, report.after.tasks);
  report.num_links = static_cast<int64_t>(links.size());
  report.num_rounds = static_cast<int64_t>(MessageRounds(options.servers, links).size());
  const AttentionTokenBytes& bytes = report.pool.bytes;
  report.forward = BytesOver(report.pool, links, {bytes.q, bytes.kv}, {bytes.out + bytes.lse, 0});
  // Backward: queries, results and their gradients, statistics, keys and values there; gradients of
  // queries and, in float32, of keys and values back.
  report.both =
      BytesOver(report.pool, links, {2 * bytes.q + 2 * bytes.out + bytes.lse, 2 * bytes.kv},
                {bytes.out + bytes.lse + bytes.q, bytes.kv_gradient});
  return report;
}

nlohmann::json LengthPlanJson(const LengthPlanReport& report) {
  const AttentionPool& pool = report.pool;
  Json documents = Json::array(), tasks = Json::array();
  for (size_t d = 0; d < pool.documents.size(); ++d) {
    const PooledDocument& document = pool.documents[d];
    Json pieces = Json::array();
    for (int32_t i = 0; i < document.num_pieces; ++i) {
      const DocumentPiece& piece = pool.pieces[static_cast<size_t>(document.first_piece + i)];
      pieces.push_back({{"owner", piece.owner}, {"begin", piece.begin}, {"length", piece.length}});
    }
    documents.push_back({{"id", d}, {"length", document.length}, {"pieces", std::move(pieces)}});
  }
  for (const ServerTask& task : report.after.tasks) {
    tasks.push_back({{"document", task.document},
                     {"q_begin", task.q_begin},
                     {"q_len", task.q_len},
                     {"server", task.server}});
  }
  const auto sides = [](const RankBytes& bytes) {
    return Json{{"send_bytes", bytes.send}, {"recv_bytes", bytes.recv}};
  };
  return {{"servers", report.options.servers},
          {"tokens_per_server", report.options.tokens_per_server},
          {"tolerance", report.options.tolerance},
          {"heads",
           {{"q", report.num_heads},
            {"kv", report.num_kv_heads},
            {"qk_size", report.qk_size},
            {"v_size", report.v_size}}},
          {"token_bytes",
           {{"q", pool.bytes.q},
            {"kv", pool.bytes.kv},
            {"out", pool.bytes.out},
            {"lse", pool.bytes.lse},
            {"kv_gradient", pool.bytes.kv_gradient}}},
          {"documents", std::move(documents)},
          {"tasks", std::move(tasks)},
          {"load_in_place", report.before.load},
          {"load", report.after.load},
          {"send_bytes", report.after.send_bytes},
          {"recv_bytes", report.after.recv_bytes},
          {"forward", sides(report.forward)},
          {"forward_and_backward", sides(report.both)},
          {"messages", report.num_links},
          {"rounds", report.num_rounds},
          {"planning_ms", report.planning_ms}};
}

}  // namespace evenkeel
