#include "runtime/metrics/bar_plot.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/metrics/plot_axis.h"
#include "runtime/metrics/svg_canvas.h"

namespace evenkeel {
namespace {

constexpr double kLabelSize = 12, kValueSize = 11;
constexpr double kMaxBar = 64;    // pixels
constexpr size_t kMaxLabel = 28;  // characters of a group's name
constexpr double kRotation = 35;  // degrees

std::string Shorten(const std::string& name) {
  if (name.size() <= kMaxLabel) return name;
  // Cut between code points: continuation bytes are 10xxxxxx.
  size_t end = kMaxLabel - 3;
  while (end > 0 && (static_cast<unsigned char>(name[end]) & 0xC0) == 0x80) --end;
  return name.substr(0, end) + "...";
}

// Cuts `name` in two at the space that makes the longer half shortest; the second may be empty.
std::pair<std::string, std::string> Wrap(const std::string& name) {
  std::pair<std::string, std::string> best = {name, ""};
  for (size_t space = name.find(' '); space != std::string::npos;
       space = name.find(' ', space + 1)) {
    if (std::max(space, name.size() - space) < std::max(best.first.size(), best.second.size())) {
      best = {name.substr(0, space), name.substr(space + 1)};
    }
  }
  return best;
}

struct GroupLabels {
  enum class Form { kLine, kTwoLines, kTurned } form = Form::kLine;
  std::vector<std::string> names;
  size_t every = 1;  // every how many groups one is named
  double room = 0;   // height
};

GroupLabels LayOutLabels(const std::vector<std::string>& groups, double group_width) {
  GroupLabels labels;
  double widest = 0, widest_half = 0;
  for (const std::string& group : groups) {
    labels.names.push_back(Shorten(group));
    const auto halves = Wrap(labels.names.back());
    widest = std::max(widest, TextWidth(labels.names.back(), kLabelSize));
    widest_half = std::max(
        {widest_half, TextWidth(halves.first, kLabelSize), TextWidth(halves.second, kLabelSize)});
  }
  labels.room = kLabelSize + 10;
  if (widest + 8 <= group_width) return labels;
  if (widest_half + 8 <= group_width) {
    labels.form = GroupLabels::Form::kTwoLines;
    labels.room += kLabelSize + 4;
    return labels;
  }
  // Short names are thinned out, long ones are turned.
  if (widest <= 48) {
    labels.every = static_cast<size_t>(std::ceil((widest + 8) / group_width));
    return labels;
  }
  labels.form = GroupLabels::Form::kTurned;
  labels.every = static_cast<size_t>(std::ceil((kLabelSize + 6) / group_width));
  labels.room = widest * std::sin(kRotation * 3.14159265 / 180) + kLabelSize + 8;
  return labels;
}

void DrawGroupLabel(SvgCanvas& canvas, const GroupLabels& labels, size_t group, double center,
                    double top) {
  const std::string& name = labels.names[group];
  const SvgTextStyle style = {.size = kLabelSize, .anchor = "middle"};
  switch (labels.form) {
    case GroupLabels::Form::kLine:
      return canvas.Text({center, top + 18}, name, style);
    case GroupLabels::Form::kTwoLines: {
      const auto [first, second] = Wrap(name);
      canvas.Text({center, top + 18}, first, style);
      return canvas.Text({center, top + 18 + kLabelSize + 4}, second, style);
    }
    case GroupLabels::Form::kTurned:
      return canvas.Text({center + 4, top + 16}, name,
                         {.size = kLabelSize, .anchor = "end", .rotation = -kRotation});
  }
}

}  // namespace

std::string RenderBarPlot(const BarPlot& plot) {
  double low = 0, high = 0;
  bool any = false;
  std::vector<LegendEntry> legend;
  for (size_t s = 0; s < plot.series.size(); ++s) {
    EK_CHECK(plot.series[s].values.size() == plot.groups.size())
        << plot.series[s].values.size() << " values, " << plot.groups.size() << " groups";
    if (plot.series.size() > 1) {
      legend.push_back({plot.series[s].name, SeriesColor(s), LegendEntry::Sample::kSquare});
    }
    for (const double value : plot.series[s].values) {
      if (!IsPlottable(value)) continue;
      low = std::min(low, value);
      high = std::max(high, value);
      any = true;
    }
  }
  const bool with_reference = plot.reference && IsPlottable(*plot.reference);
  if (with_reference) {
    low = std::min(low, *plot.reference);
    high = std::max(high, *plot.reference);
  }
  if (low == high) high = 1;
  const PlotAxis axis = LinearAxis(low, high, 6, /*extend=*/true, /*whole=*/false);

  SvgCanvas canvas(plot.width, plot.height, plot.title);
  const double heading = DrawHeading(canvas, plot.width, plot.title, plot.subtitle, legend);
  PlotArea area = {.left = LabelRoom(axis),
                   .top = heading + (plot.y_label.empty() ? 24 : 44),
                   .right = plot.width - 24,
                   .bottom = plot.height};
  if (with_reference) {
    area.right -= TextWidth(plot.reference_label, kLabelSize) + 2;
  }
  const double num_groups = std::max<double>(1, static_cast<double>(plot.groups.size()));
  const double group_width = (area.right - area.left) / num_groups;
  const GroupLabels labels = LayOutLabels(plot.groups, group_width);
  area.bottom -= 20 + labels.room + (plot.x_label.empty() ? 0 : 20);
  DrawVerticalAxis(canvas, area, axis, plot.y_label);

  const double num_bars = std::max<double>(1, static_cast<double>(plot.series.size()));
  const double bar_width = std::min(kMaxBar, group_width * 0.76 / num_bars);
  const double gap = bar_width > 6 ? 2 : 0;  // between the bars of a group
  const double zero = area.Y(axis, 0);
  // Values are written on all bars or on none: a few would look like a choice.
  double widest_value = 0;
  for (const BarSeries& series : plot.series) {
    for (const double value : series.values) {
      if (!IsPlottable(value)) continue;
      widest_value = std::max(widest_value, TextWidth(ShortNumber(value, 3), kValueSize));
    }
  }
  const bool show_values = widest_value <= bar_width + 4;
  for (size_t g = 0; g < plot.groups.size(); ++g) {
    const double center = area.left + (static_cast<double>(g) + 0.5) * group_width;
    for (size_t s = 0; s < plot.series.size(); ++s) {
      const double value = plot.series[s].values[g];
      if (!IsPlottable(value)) continue;
      const double x = center + (static_cast<double>(s) - num_bars / 2) * bar_width;
      const double y = area.Y(axis, value);
      canvas.Rect(x + gap / 2, std::min(y, zero), bar_width - gap, std::abs(zero - y),
                  SeriesColor(s), std::min(2.0, bar_width / 6));
      if (show_values) {
        canvas.Text({x + bar_width / 2, value < 0 ? y + kValueSize + 3 : y - 5},
                    ShortNumber(value, 3),
                    {.size = kValueSize, .color = kMutedInk, .anchor = "middle"});
      }
    }
    if (g % labels.every != 0) continue;
    DrawGroupLabel(canvas, labels, g, center, area.bottom);
  }
  canvas.Line({area.left, zero}, {area.right, zero}, kAxisInk, 1);
  if (with_reference) {
    const double y = area.Y(axis, *plot.reference);
    canvas.Line({area.left, y}, {area.right, y}, kInk, 1.2, /*dashed=*/true);
    canvas.Text({area.right + 6, y + 4}, plot.reference_label, {.size = kLabelSize});
  }
  if (!any) {
    canvas.Text({(area.left + area.right) / 2, (area.top + area.bottom) / 2}, "no data",
                {.size = 16, .color = kMutedInk, .anchor = "middle"});
  }
  if (!plot.x_label.empty()) {
    canvas.Text({(area.left + area.right) / 2, plot.height - 20}, plot.x_label,
                {.size = kLabelSize, .color = kMutedInk, .anchor = "middle"});
  }
  return canvas.Finish();
}

}  // namespace evenkeel
