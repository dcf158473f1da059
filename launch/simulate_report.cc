#include "launch/simulate_report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "runtime/base/status_macros.h"
#include "runtime/metrics/text_table.h"

namespace evenkeel {
namespace {

using Json = nlohmann::json;

// Below this, a difference is none that a simulation can tell.
constexpr double kEven = 0.005;

std::string LengthText(int64_t tokens) {
  if (tokens % (1 << 20) == 0) return absl::StrCat(tokens >> 20, "M");
  if (tokens % 1024 == 0) return absl::StrCat(tokens / 1024, "K");
  return absl::StrCat(tokens);
}

std::string LayoutText(const SimLayout& layout) {
  std::string text;
  if (layout.pools > 1) absl::StrAppend(&text, layout.pools, " pools ");
  absl::StrAppend(&text, "pp ", layout.pp, " dp ", layout.dp, " cp ", layout.cp, " x ",
                  layout.micro_batches);
  if (layout.virtual_stages > 1) {
    absl::StrAppend(&text, ", virtual stages ", layout.virtual_stages);
  }
  if (layout.gathers_again) absl::StrAppend(&text, ", gathers twice");
  if (!layout.fits) absl::StrAppend(&text, " (too large)");
  return text;
}

std::string SecondsText(double seconds) {
  if (seconds >= 100) return absl::StrFormat("%.1f s", seconds);
  if (seconds >= 1) return absl::StrFormat("%.3f s", seconds);
  return absl::StrFormat("%.2f ms", seconds * 1e3);
}

std::string RatioText(std::optional<double> ratio) {
  return ratio.has_value() ? absl::StrFormat("%.2f", *ratio) : "-";
}

std::string PublishedText(const std::optional<PublishedRange>& range) {
  if (!range.has_value()) return "";
  return absl::StrFormat("%.2f-%.2f", range->low, range->high);
}

const SimResult* Find(const StudyReport& report, SimSystem system) {
  const auto found = report.systems.find(system);
  return found == report.systems.end() ? nullptr : &found->second;
}

Json JsonOf(const SimResult& result) {
  const SimLayout& layout = result.layout;
  return {{"pools", layout.pools},
          {"pp", layout.pp},
          {"virtual_stages", layout.virtual_stages},
          {"dp", layout.dp},
          {"cp", layout.cp},
          {"micro_batches", layout.micro_batches},
          {"gathers_again", layout.gathers_again},
          {"memory_bytes", layout.memory_bytes},
          {"fits", layout.fits},
          {"seconds", result.seconds},
          {"step_seconds", result.step_seconds},
          {"idle_share", result.idle},
          {"message_share", result.waits_message},
          {"model_flops_per_gpu", result.model_flops},
          {"tokens_per_second_per_gpu", result.tokens_per_second},
          {"heaviest_over_mean", result.plans.heaviest},
          {"max_receive_bytes", result.plans.max_receive},
          {"max_send_bytes", result.plans.max_send},
          {"mean_receive_bytes", result.plans.mean_receive},
          {"planning_seconds", result.plans.planning_seconds}};
}

}  // namespace

std::optional<double> StudyReport::SpeedUp(SimSystem system) const {
  const SimResult* ours = Find(*this, SimSystem::kDisaggregated);
  const SimResult* theirs = Find(*this, system);
  if (ours == nullptr || theirs == nullptr) return std::nullopt;
  return theirs->seconds / ours->seconds;
}

absl::StatusOr<StudyReport> RunStudy(const SimCase& study, const std::vector<SimSystem>& systems,
                                     ThreadPool* threads) {
  StudyReport report;
  report.study = study;
  for (SimSystem system : systems) {
    auto result = RunBest(study, system, threads);
    if (absl::IsNotFound(result.status())) {
      report.absent[system] = std::string(result.status().message());
      continue;
    }
    EK_RETURN_IF_ERROR(result.status());
    report.systems.emplace(system, *std::move(result));
  }
  if (report.systems.empty()) {
    return absl::InvalidArgumentError(report.absent.begin()->second);
  }
  return report;
}

absl::Status AddAblations(const std::vector<double>& tolerances, ThreadPool* threads,
                          StudyReport* report) {
  const SimResult* ours = Find(*report, SimSystem::kDisaggregated);
  if (ours == nullptr) return absl::OkStatus();
  const SimLayout layout = ours->layout;
  const auto add = [&](const std::string& name, const SimCase& study,
                       std::vector<StudyReport::Variant>* variants) -> absl::Status {
    EK_ASSIGN_OR_RETURN(SimResult result, RunLayout(study, layout, threads));
    variants->push_back({name, std::move(result)});
    return absl::OkStatus();
  };
  SimCase study = report->study;
  study.mode = MessageMode::kOneStream;
  EK_RETURN_IF_ERROR(add("one stream", study, &report->variants));
  study.mode = MessageMode::kSignal;
  EK_RETURN_IF_ERROR(add("signal", study, &report->variants));
  for (const auto& [name, order] :
       {std::pair{"staggered", PieceOrder::kStaggered},
        std::pair{"staggered forward", PieceOrder::kStaggeredForward}}) {
    study = report->study;
    study.order = order;
    EK_RETURN_IF_ERROR(add(name, study, &report->variants));
  }
  if (report->study.owners_serve) {
    study = report->study;
    study.balance = false;
    EK_RETURN_IF_ERROR(add("not balanced", study, &report->variants));
  }
  for (double tolerance : tolerances) {
    study = report->study;
    study.planning.tolerance = tolerance;
    EK_RETURN_IF_ERROR(add(absl::StrFormat("%g", tolerance), study, &report->tolerances));
  }
  return absl::OkStatus();
}

std::string Verdict(const StudyReport& report) {
  const auto gain = report.SpeedUp(SimSystem::kBalanced);
  if (!gain.has_value()) return "";
  if (*gain > 1 + kEven) {
    return absl::StrFormat("Disaggregation pays: %.2f times as fast as the balanced baseline.",
                           *gain);
  }
  if (*gain >= 1 - kEven) return "Disaggregation makes no difference to the balanced baseline.";
  return absl::StrFormat(
      "Disaggregation does not pay here: the balanced baseline is %.2f times as fast.", 1 / *gain);
}

std::string StudyText(const StudyReport& report) {
  const SimCase& study = report.study;
  std::string text = absl::StrCat(
      study.model_name, " on ", study.gpus, " x ", study.cluster.shape.name, ", ", study.data_name,
      "\nsamples of ", LengthText(study.context), " tokens, ", study.samples, " a batch, ",
      study.batches, " batches, tp ", study.tp, ", tolerance ", study.planning.tolerance, "\n\n");
  TextTable table({{"", TextColumn::Align::kLeft},
                   {"step"},
                   {"speed-up"},
                   {"idle"},
                   {"tokens/s/GPU"},
                   {"TFLOP/s"},
                   {"GB"},
                   {"layout", TextColumn::Align::kLeft}});
  const SimResult* ours = Find(report, SimSystem::kDisaggregated);
  const auto add = [&](const std::string& name, const SimResult& result) {
    table.AddRow({name, SecondsText(result.seconds),
                  ours == nullptr ? "" : absl::StrFormat("%.3f", ours->seconds / result.seconds),
                  absl::StrFormat("%.1f%%", 100 * result.idle),
                  absl::StrFormat("%.0f", result.tokens_per_second),
                  absl::StrFormat("%.1f", result.model_flops / 1e12),
                  absl::StrFormat("%.0f", result.layout.memory_bytes / 1e9),
                  LayoutText(result.layout)});
  };
  for (const auto& [system, result] : report.systems) add(SystemText(system), result);
  if (!report.variants.empty()) {
    table.AddRule();
    for (const auto& variant : report.variants) add(variant.name, variant.result);
  }
  absl::StrAppend(&text, table.Render(),
                  "speed-up: 1 is the disaggregated step; idle: nothing computed; TFLOP/s: by the "
                  "honest formula\n");
  for (const auto& [system, why] : report.absent) absl::StrAppend(&text, why, "\n");
  if (ours != nullptr && ours->plans.plans > 0) {
    const PlanSummary& plans = ours->plans;
    absl::StrAppend(
        &text,
        absl::StrFormat("\nPlans: heaviest server %.3f of the mean; Q, K, V of a layer and "
                        "nano-batch: at most %.0f MB received, %.0f MB sent by a server, %.0f MB "
                        "on average; slowest plan %.2f ms\n",
                        plans.heaviest, plans.max_receive / 1e6, plans.max_send / 1e6,
                        plans.mean_receive / 1e6, plans.planning_seconds * 1e3));
  }
  if (!report.tolerances.empty()) {
    TextTable sweep({{"tolerance"},
                     {"step"},
                     {"of the best"},
                     {"heaviest"},
                     {"max receive"},
                     {"mean receive"}});
    double best = report.tolerances.front().result.seconds;
    for (const auto& variant : report.tolerances) best = std::min(best, variant.result.seconds);
    for (const auto& [name, result] : report.tolerances) {
      sweep.AddRow({name, SecondsText(result.seconds),
                    absl::StrFormat("%.3f", result.seconds / best),
                    absl::StrFormat("%.3f", result.plans.heaviest),
                    absl::StrFormat("%.0f MB", result.plans.max_receive / 1e6),
                    absl::StrFormat("%.0f MB", result.plans.mean_receive / 1e6)});
    }
    absl::StrAppend(&text, "\n", sweep.Render());
  }
  const std::string verdict = Verdict(report);
  if (!verdict.empty()) absl::StrAppend(&text, "\n", verdict, "\n");
  return text;
}

std::string StudyTable(const std::string& title, const std::vector<StudyReport>& reports) {
  TextTable table({{"model", TextColumn::Align::kLeft},
                   {"data", TextColumn::Align::kLeft},
                   {"max doc"},
                   {"GPUs"},
                   {"batch"},
                   {"disaggregated"},
                   {"balanced"},
                   {"speed-up"},
                   {"published"},
                   {"hidden"},
                   {"plain dp"},
                   {"idle"},
                   {"balanced idle"},
                   {"layout", TextColumn::Align::kLeft},
                   {"balanced layout", TextColumn::Align::kLeft}},
                  title);
  for (const StudyReport& report : reports) {
    const SimCase& study = report.study;
    const SimResult* ours = Find(report, SimSystem::kDisaggregated);
    const SimResult* balanced = Find(report, SimSystem::kBalanced);
    const auto seconds = [](const SimResult* result) {
      return result == nullptr ? "-" : SecondsText(result->seconds);
    };
    const auto idle = [](const SimResult* result) {
      return result == nullptr ? "-" : absl::StrFormat("%.1f%%", 100 * result->idle);
    };
    const auto layout = [](const SimResult* result) {
      return result == nullptr ? "-" : LayoutText(result->layout);
    };
    table.AddRow({study.model_name, study.data_name, LengthText(study.context),
                  absl::StrCat(study.gpus), absl::StrCat(study.samples), seconds(ours),
                  seconds(balanced), RatioText(report.SpeedUp(SimSystem::kBalanced)),
                  PublishedText(report.published),
                  RatioText(report.SpeedUp(SimSystem::kBalancedHidden)),
                  RatioText(report.SpeedUp(SimSystem::kInOrder)), idle(ours), idle(balanced),
                  layout(ours), layout(balanced)});
  }
  std::string text = table.Render();
  absl::StrAppend(&text,
                  "speed-up: over the balanced dp x cp baseline; hidden: over the same with its "
                  "gathers hidden;\nplain dp: over documents as they come; idle: nothing computed; "
                  "layout: x micro-batches\n");
  for (const StudyReport& report : reports) {
    const auto gain = report.SpeedUp(SimSystem::kBalanced);
    if (!gain.has_value() || *gain > 1 + kEven) continue;
    absl::StrAppend(&text, report.study.model_name, " ", report.study.data_name, " ",
                    LengthText(report.study.context), " on ", report.study.gpus,
                    " GPUs: ", Verdict(report), "\n");
  }
  return text;
}

Json StudyJson(const StudyReport& report) {
  const SimCase& study = report.study;
  Json json = {{"model", study.model_name},
               {"data", study.data_name},
               {"cluster", study.cluster.shape.name},
               {"gpus", study.gpus},
               {"tp", study.tp},
               {"max_doc_len", study.context},
               {"batch", study.samples},
               {"batches", study.batches},
               {"tolerance", study.planning.tolerance},
               {"verdict", Verdict(report)}};
  for (const auto& [system, result] : report.systems) {
    json["systems"][SystemText(system)] = JsonOf(result);
    if (system == SimSystem::kDisaggregated) continue;
    if (const auto gain = report.SpeedUp(system)) json["speed_up"][SystemText(system)] = *gain;
  }
  for (const auto& [system, why] : report.absent) json["absent"][SystemText(system)] = why;
  for (const auto& [name, result] : report.variants) json["variants"][name] = JsonOf(result);
  for (const auto& [name, result] : report.tolerances) json["tolerances"][name] = JsonOf(result);
  if (report.published.has_value()) {
    json["published_speed_up"] = {report.published->low, report.published->high};
  }
  if (report.published_seconds.has_value()) json["published_seconds"] = *report.published_seconds;
  return json;
}

}  // namespace evenkeel
