// The pictures of a simulated experiment.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "launch/simulate_report.h"
#include "runtime/metrics/bar_plot.h"
#include "runtime/metrics/line_plot.h"

namespace evenkeel {
namespace {

std::string CaseText(const StudyReport& report) {
  return absl::StrCat(report.study.context / 1024, "K ", report.study.gpus);
}

}  // namespace

std::string SpeedUpPlot(const std::string& title, const std::vector<StudyReport>& reports) {
  BarPlot plot;
  plot.title = title;
  plot.subtitle = "times as fast as the balanced baseline, by longest document and GPUs";
  plot.y_label = "speed-up";
  plot.reference = 1;
  plot.reference_label = "even";
  std::vector<std::string> data;
  for (const StudyReport& report : reports) {
    if (std::find(data.begin(), data.end(), report.study.data_name) == data.end()) {
      data.push_back(report.study.data_name);
    }
    const std::string group = CaseText(report);
    if (std::find(plot.groups.begin(), plot.groups.end(), group) == plot.groups.end()) {
      plot.groups.push_back(group);
    }
  }
  for (const std::string& name : data) {
    BarSeries series{name, std::vector<double>(plot.groups.size())};
    for (const StudyReport& report : reports) {
      if (report.study.data_name != name) continue;
      const auto group = std::find(plot.groups.begin(), plot.groups.end(), CaseText(report));
      series.values[static_cast<size_t>(group - plot.groups.begin())] =
          report.SpeedUp(SimSystem::kBalanced).value_or(0);
    }
    plot.series.push_back(std::move(series));
  }
  plot.width = std::max(880.0, 120.0 + 90.0 * static_cast<double>(plot.groups.size()));
  return RenderBarPlot(plot);
}

std::string TolerancePlot(const std::vector<StudyReport>& reports) {
  LinePlot plot;
  plot.title = "Step time over the planner's tolerance";
  plot.subtitle = "of the best tolerance of each case";
  plot.x_label = "tolerance";
  plot.y_label = "step time";
  for (const StudyReport& report : reports) {
    if (report.tolerances.empty()) continue;
    LineSeries series;
    series.name =
        absl::StrCat(report.study.model_name, " ", report.study.data_name, " ", CaseText(report));
    double best = report.tolerances.front().result.seconds;
    for (const auto& variant : report.tolerances) best = std::min(best, variant.result.seconds);
    for (const auto& [name, result] : report.tolerances) {
      series.x.push_back(std::stod(name));
      series.y.push_back(result.seconds / best);
    }
    plot.series.push_back(std::move(series));
  }
  return RenderLinePlot(plot);
}

std::string VariantPlot(const std::vector<StudyReport>& reports) {
  BarPlot plot;
  plot.title = "What ping-pong and balancing save";
  plot.subtitle = "step time over that of the disaggregated step";
  plot.y_label = "step time";
  plot.reference = 1;
  plot.reference_label = "disaggregated";
  for (const StudyReport& report : reports) {
    const auto ours = report.systems.find(SimSystem::kDisaggregated);
    if (ours == report.systems.end() || report.variants.empty()) continue;
    plot.groups.push_back(absl::StrCat(report.study.model_name, " ", CaseText(report)));
    for (size_t i = 0; i < report.variants.size(); ++i) {
      if (plot.series.size() <= i) plot.series.push_back({report.variants[i].name, {}});
      plot.series[i].values.push_back(report.variants[i].result.seconds / ours->second.seconds);
    }
  }
  return RenderBarPlot(plot);
}

}  // namespace evenkeel
