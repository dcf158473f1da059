#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "launch/plan_report.h"
#include "runtime/metrics/human_format.h"
#include "runtime/metrics/text_table.h"
#include "runtime/tensor/memory_tracker.h"

namespace evenkeel {
namespace {

// Kinds that are shown one by one; of more, those that need most.
constexpr size_t kMostKinds = 16;
constexpr int kTimetableWidth = 100;

// "1 sample", "2 samples"
std::string Counted(int64_t count, const char* noun, const char* plural = "s") {
  return absl::StrCat(count, " ", noun, count == 1 ? "" : plural);
}

size_t ShownKinds(const PlanReport& report) {
  return std::min(report.kinds.size(), kMostKinds);
}

std::string FlopsText(const PlanReport& report) {
  const auto sequence = static_cast<double>(report.config.data.sequence_length);
  TextTable work({{"FLOPs a token", TextColumn::Align::kLeft}, {"training"}, {"share"}},
                 "Forward and backward, one document a sequence, recomputation not counted");
  const auto add = [&](const char* name, double value) {
    if (value <= 0) return;
    work.AddRow({name, FormatCount(value / sequence),
                 absl::StrFormat("%.1f %%", 100 * value / report.flops.total())});
  };
  add("matrix products", report.flops.matmul);
  add("softmax attention", report.flops.softmax_attention);
  add("linear attention", report.flops.linear_attention);
  work.AddRule();
  work.AddRow({"total", FormatCount(report.flops_per_token()), "100.0 %"});
  return work.Render();
}

// "4 stages of 2 chunks, 2 replicas, ..."
std::string MeshText(const PlanReport& report) {
  const ParallelPlan& plan = report.plan;
  const MeshShape& mesh = plan.mesh;
  std::string text =
      absl::StrFormat("Mesh of %s: pp %d, dp %d, cp %d, tp %d", Counted(mesh.num_ranks(), "rank"),
                      mesh.pp, mesh.dp, mesh.cp, mesh.tp);
  if (plan.virtual_stages > 1) absl::StrAppend(&text, ", virtual stages ", plan.virtual_stages);
  if (mesh.dp * mesh.cp > 1) absl::StrAppend(&text, ", ZeRO ", static_cast<int>(plan.sharding));
  if (plan.num_dedicated > 0) {
    absl::StrAppend(&text, ", and ",
                    Counted(int64_t{1} * plan.num_dedicated * mesh.tp, "attention server"));
  }
  return text + "\n";
}

// A number, or the range of a layer's numbers.
template <typename Number>
std::string RangeOf(const std::vector<LayerShape>& layers, const Number& number) {
  const auto [low, high] = std::minmax_element(
      layers.begin(), layers.end(),
      [&](const LayerShape& a, const LayerShape& b) { return number(a) < number(b); });
  if (number(*low) == number(*high)) return absl::StrCat(number(*low));
  return absl::StrCat(number(*low), "-", number(*high));
}

std::string HoldingsText(const PlanReport& report) {
  TextTable table({{"rank", TextColumn::Align::kLeft},
                   {"ranks"},
                   {"layers"},
                   {"heads"},
                   {"kv heads"},
                   {"columns"},
                   {"vocabulary"},
                   {"parameters"},
                   {"owned"}},
                  "What each rank holds: heads, columns of the feed-forward and rows of the "
                  "vocabulary of its slice");
  for (size_t i = 0; i < ShownKinds(report); ++i) {
    const RankKind& kind = report.kinds[i].kind;
    const ModelShape& shape = kind.shape;
    if (kind.is_dedicated) {
      table.AddRow({NameOf(report.plan, kind), absl::StrCat(kind.num_ranks), "0",
                    absl::StrCat(shape.pooled->num_heads), absl::StrCat(shape.pooled->num_kv_heads),
                    "", "", "0", "0"});
      continue;
    }
    const bool has_vocabulary = shape.is_first || shape.is_last;
    table.AddRow(
        {NameOf(report.plan, kind), absl::StrCat(kind.num_ranks), absl::StrCat(shape.layers.size()),
         RangeOf(shape.layers, [](const LayerShape& layer) { return layer.num_heads; }),
         RangeOf(shape.layers, [](const LayerShape& layer) { return layer.num_kv_heads; }),
         RangeOf(shape.layers, [](const LayerShape& layer) { return layer.intermediate_size; }),
         has_vocabulary ? absl::StrCat(shape.vocab_size) : "",
         FormatCount(static_cast<double>(shape.num_parameters)),
         FormatCount(static_cast<double>(report.kinds[i].owned_parameters))});
  }
  std::string text = table.Render();
  if (report.kinds.size() > kMostKinds) {
    absl::StrAppend(&text, report.kinds.size() - kMostKinds,
                    " other kinds of ranks need less memory; --json has all\n");
  }
  return text;
}

std::string MemoryText(const PlanReport& report) {
  std::vector<TextColumn> columns = {{"purpose", TextColumn::Align::kLeft}};
  const bool is_one = report.kinds.size() == 1;
  for (size_t i = 0; i < ShownKinds(report); ++i) {
    columns.push_back({is_one ? "memory a rank" : NameOf(report.plan, report.kinds[i].kind)});
  }
  const int64_t micro_tokens =
      report.config.data.sequence_length *
      std::min(report.config.train.micro_batch_size, report.config.train.global_batch_size);
  TextTable table(
      std::move(columns),
      absl::StrFormat("Memory of each of %s on %s in %s%s, micro-batches of %d tokens",
                      Counted(report.plan.num_ranks(), "rank"),
                      DeviceText(report.config.runtime.device),
                      DTypeText(ComputeDType(report.config.runtime)),
                      report.config.runtime.fp8 ? " with products in FP8" : "", micro_tokens));
  const auto add = [&](const char* name, const auto& bytes) {
    std::vector<std::string> cells = {name};
    for (size_t i = 0; i < ShownKinds(report); ++i) {
      cells.push_back(FormatBytes(bytes(report.kinds[i].memory)));
    }
    table.AddRow(std::move(cells));
  };
  add("weights", [](const MemoryPlan& memory) { return memory.weights; });
  add("gradients", [](const MemoryPlan& memory) { return memory.gradients; });
  add("optimizer", [](const MemoryPlan& memory) { return memory.optimizer; });
  add("activations", [](const MemoryPlan& memory) { return memory.activations; });
  add("workspace", [](const MemoryPlan& memory) { return memory.workspace; });
  if (report.plan.tp_transport == RowTransport::kCopyEngines) {
    add("windows of tp", [](const MemoryPlan& memory) { return memory.windows; });
  }
  if (report.plan.pools_attention()) {
    add("attention buffers", [](const MemoryPlan& memory) { return memory.attention; });
  }
  table.AddRule();
  add("total", [](const MemoryPlan& memory) { return memory.total(); });
  return table.Render();
}

std::string VolumeText(const PlanReport& report) {
  if (report.plan.mesh.num_ranks() == 1) return "";
  std::vector<TextColumn> columns = {{"axis", TextColumn::Align::kLeft},
                                     {"operation", TextColumn::Align::kLeft}};
  std::set<std::pair<std::string, std::string>> keys;
  const bool is_one = report.kinds.size() == 1;
  for (size_t i = 0; i < ShownKinds(report); ++i) {
    columns.push_back({is_one ? "sent by a rank" : NameOf(report.plan, report.kinds[i].kind)});
    for (const auto& [key, _] : report.kinds[i].volume) keys.insert(key);
  }
  TextTable table(std::move(columns), "Bytes that a rank sends in a step");
  const auto add = [&](const std::string& axis, const std::string& operation, const auto& bytes) {
    std::vector<std::string> cells = {axis, operation};
    for (size_t i = 0; i < ShownKinds(report); ++i) {
      const double value = bytes(report.kinds[i].volume);
      cells.push_back(value > 0 ? FormatBytes(static_cast<int64_t>(value)) : "");
    }
    table.AddRow(std::move(cells));
  };
  for (const auto& key : keys) {
    add(key.first, key.second, [&](const CommVolume& volume) {
      const auto found = volume.find(key);
      return found == volume.end() ? 0.0 : found->second;
    });
  }
  table.AddRule();
  add("total", "", TotalBytes);
  return table.Render() + "\n";
}

std::string StepText(const PlanReport& report) {
  const auto tokens = static_cast<double>(report.step_tokens());
  std::string text =
      absl::StrFormat("Each step: %s tokens, %s FLOPs, %s a replica", FormatCount(tokens),
                      FormatCount(report.flops_per_token() * tokens),
                      Counted(report.micro_batches, "micro-batch", "es"));
  std::vector<std::string> odd;
  const int64_t empty = report.empty_micro_batches;
  if (empty > 0) odd.push_back(absl::StrCat(empty, empty == 1 ? " is empty" : " are empty"));
  if (report.short_micro_batches > 0) odd.push_back("1 is short");
  const int dp = report.plan.mesh.dp;
  if (!odd.empty()) {
    const int64_t room = report.micro_batches * dp * report.config.train.micro_batch_size;
    const double idle =
        1 - static_cast<double>(report.config.train.global_batch_size) / static_cast<double>(room);
    absl::StrAppend(&text, dp > 1 ? absl::StrFormat(", %d in all", report.micro_batches * dp) : "",
                    ", of which ", absl::StrJoin(odd, " and "),
                    absl::StrFormat(", so %.0f %% of the replicas' time is idle", 100 * idle));
  }
  text += ".\n";
  if (report.micro_batches == 1 && empty > 0) {
    absl::StrAppendFormat(
        &text,
        "Some replicas have no work: raise train.global_batch_size to %d or more, or start fewer "
        "ranks.\n",
        dp * report.config.train.micro_batch_size);
  }
  return text;
}

std::string TimetableText(const PlanReport& report) {
  if (!report.timetable.has_value()) return "";
  return absl::StrFormat(
             "\nSchedule of a step, layers costing what their FLOPs do at %s FLOP/s a rank%s, "
             "messages nothing:\n",
             FormatCount(report.assumed_flops),
             report.config.runtime.peak_gflops > 0 ? "" : " (set runtime.peak_gflops)") +
         RenderTimetable(*report.timetable, kTimetableWidth);
}

}  // namespace

std::string PlanText(const PlanReport& report) {
  return absl::StrCat(
      absl::StrFormat("%s: %s parameters, %d layers of width %d, %d tokens a sequence\n\n",
                      report.config_file,
                      FormatCount(static_cast<double>(report.model.num_parameters)),
                      report.config.model.num_layers, report.config.model.hidden_size,
                      report.config.data.sequence_length),
      FlopsText(report), "\n", MeshText(report), "\n", HoldingsText(report), "\n",
      MemoryText(report), "\n", VolumeText(report), StepText(report), TimetableText(report));
}

}  // namespace evenkeel
