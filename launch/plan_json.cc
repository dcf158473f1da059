#include <algorithm>
#include <utility>

#include "launch/plan_report.h"
#include "models/model_shape.h"
#include "nlohmann/json.hpp"

namespace evenkeel {
namespace {

using Json = nlohmann::json;

Json JsonOf(const MemoryPlan& memory) {
  return {{"weights", memory.weights},     {"gradients", memory.gradients},
          {"optimizer", memory.optimizer}, {"activations", memory.activations},
          {"workspace", memory.workspace}, {"windows", memory.windows},
          {"attention", memory.attention}, {"total", memory.total()}};
}

Json JsonOf(const CommVolume& volume) {
  Json axes = Json::object();
  for (const auto& [key, bytes] : volume) axes[key.first][key.second] = bytes;
  return axes;
}

Json JsonOf(const ParallelPlan& plan, const KindReport& report) {
  const ModelShape& shape = report.kind.shape;
  Json layers = Json::array();
  for (const LayerShape& layer : shape.layers) {
    layers.push_back({{"heads", layer.num_heads},
                      {"kv_heads", layer.num_kv_heads},
                      {"intermediate_size", layer.intermediate_size}});
  }
  Json chunks = Json::array();
  for (const ChunkShape& chunk : shape.chunks) chunks.push_back(chunk.end - chunk.begin);
  return {{"name", NameOf(plan, report.kind)},
          {"is_attention_server", report.kind.is_dedicated},
          {"stage", report.kind.stage},
          {"tp", {report.kind.tp_begin, report.kind.tp_end - 1}},
          {"ranks", report.kind.num_ranks},
          {"layers", std::move(layers)},
          {"layers_of_chunks", std::move(chunks)},
          {"has_embedding", shape.is_first || (shape.is_last && shape.ties_embedding)},
          {"has_head", shape.is_last},
          {"vocabulary", shape.vocab_size},
          {"parameters", shape.num_parameters},
          {"owned_parameters", report.owned_parameters},
          {"memory", JsonOf(report.memory)},
          {"sent_bytes", JsonOf(report.volume)},
          {"sent_bytes_total", TotalBytes(report.volume)}};
}

Json JsonOf(const Timetable& timetable) {
  Json ranks = Json::array();
  for (size_t rank = 0; rank < timetable.actions.size(); ++rank) {
    ranks.push_back(
        {{"busy_seconds", timetable.busy[rank]}, {"idle_share", timetable.idle_share[rank]}});
  }
  return {{"seconds", timetable.makespan},
          {"idle_share", timetable.total_idle_share},
          {"stages", std::move(ranks)}};
}

}  // namespace

Json PlanJson(const PlanReport& report) {
  const auto sequence = static_cast<double>(report.config.data.sequence_length);
  const MeshShape& mesh = report.plan.mesh;
  const DType dtype = ComputeDType(report.config.runtime);
  double most_sent = 0;
  Json kinds = Json::array();
  for (const KindReport& kind : report.kinds) {
    most_sent = std::max(most_sent, TotalBytes(kind.volume));
    kinds.push_back(JsonOf(report.plan, kind));
  }
  Json json = {{"parameters", report.model.num_parameters},
               {"ranks", report.plan.num_ranks()},
               {"mesh",
                {{"pp", mesh.pp},
                 {"virtual_stages", report.plan.virtual_stages},
                 {"dp", mesh.dp},
                 {"cp", mesh.cp},
                 {"tp", mesh.tp},
                 {"zero", static_cast<int>(report.plan.sharding)}}},
               {"device", DeviceText(report.config.runtime.device)},
               {"dtype", DTypeText(dtype)},
               {"fp8", report.config.runtime.fp8},
               {"tokens_per_step", report.step_tokens()},
               {"flops_per_token",
                {{"matmul", report.flops.matmul / sequence},
                 {"softmax_attention", report.flops.softmax_attention / sequence},
                 {"linear_attention", report.flops.linear_attention / sequence},
                 {"total", report.flops_per_token()}}},
               {"memory_per_rank", JsonOf(report.kinds.front().memory)},
               {"micro_batches",
                {{"per_replica", report.micro_batches},
                 {"empty", report.empty_micro_batches},
                 {"short", report.short_micro_batches}}},
               {"sent_bytes_per_step_and_rank", most_sent},
               {"kinds", std::move(kinds)}};
  if (report.timetable.has_value()) {
    json["timetable"] = JsonOf(*report.timetable);
    json["timetable"]["assumed_flops"] = report.assumed_flops;
  }
  return json;
}

}  // namespace evenkeel
