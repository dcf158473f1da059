#include "runtime/metrics/line_plot.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "runtime/base/check.h"
#include "runtime/metrics/plot_axis.h"
#include "runtime/metrics/svg_canvas.h"

namespace evenkeel {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kLabelSize = 12;
constexpr size_t kMaxPlaces = 10;  // up to so many distinct x get a tick each on a log axis

struct DataPoint {
  double x;
  double y;
};
using Segment = std::vector<DataPoint>;  // points that are joined by a line

// A series as it is drawn.
struct Curve {
  std::string color;
  std::vector<Segment> raw;
  std::vector<Segment> smooth;  // empty without smoothing

  const std::vector<Segment>& strong() const { return smooth.empty() ? raw : smooth; }
};

Curve MakeCurve(const LinePlot& plot, size_t index) {
  const LineSeries& series = plot.series[index];
  EK_CHECK(series.x.size() == series.y.size()) << series.x.size() << " x, " << series.y.size();
  EK_CHECK(series.smoothing >= 0 && series.smoothing < 1) << series.smoothing;
  Curve curve;
  curve.color = SeriesColor(index);
  double average = 0, weight = 0;
  bool gap = true;
  for (size_t i = 0; i < series.x.size(); ++i) {
    const double x = series.x[i], y = series.y[i];
    const bool shown = IsPlottable(x) && IsPlottable(y) && !(plot.log_x && x < 1e-100) &&
                       !(plot.log_y && y < 1e-100);
    if (!shown) {
      gap = true;
      continue;
    }
    if (gap) curve.raw.emplace_back();
    curve.raw.back().push_back({x, y});
    if (series.smoothing > 0) {
      average = series.smoothing * average + (1 - series.smoothing) * y;
      weight = series.smoothing * weight + (1 - series.smoothing);
      if (gap) curve.smooth.emplace_back();
      curve.smooth.back().push_back({x, average / weight});
    }
    gap = false;
  }
  return curve;
}

struct Range {
  double low = kInfinity;
  double high = -kInfinity;

  void Include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

PlotAxis AxisOver(const Range& range, bool log, int num_ticks, bool extend, bool whole) {
  if (range.low > range.high) return LinearAxis(0, 1, num_ticks, extend, whole);
  if (log) return LogAxis(range.low, range.high);
  return LinearAxis(range.low, range.high, num_ticks, extend, whole);
}

std::vector<SvgPoint> Thin(const std::vector<SvgPoint>& points, double width) {
  if (static_cast<double>(points.size()) <= 2 * width) return points;
  std::vector<SvgPoint> thinned;
  for (size_t begin = 0, end; begin < points.size(); begin = end) {
    size_t lowest = begin, highest = begin;
    for (end = begin;
         end < points.size() && std::floor(points[end].x) == std::floor(points[begin].x); ++end) {
      if (points[end].y < points[lowest].y) lowest = end;
      if (points[end].y > points[highest].y) highest = end;
    }
    size_t kept[] = {begin, std::min(lowest, highest), std::max(lowest, highest), end - 1};
    for (size_t i = 0; i < 4; ++i) {
      if (i == 0 || kept[i] != kept[i - 1]) thinned.push_back(points[kept[i]]);
    }
  }
  return thinned;
}

struct EndLabel {
  double y;  // of the text's middle
  SvgPoint at;
  std::string text;
  std::string color;
};

// Moves labels apart so that none overlaps another, as little as it takes from top to bottom.
void Spread(std::vector<EndLabel>& labels, double top, double bottom) {
  constexpr double kGap = 15;
  std::stable_sort(labels.begin(), labels.end(),
                   [](const EndLabel& a, const EndLabel& b) { return a.y < b.y; });
  double lowest = bottom;
  for (size_t i = labels.size(); i-- > 0; lowest -= kGap) {
    lowest = labels[i].y = std::min(labels[i].y, lowest);
  }
  double highest = top;
  for (EndLabel& label : labels) {
    label.y = std::max(label.y, highest);
    highest = label.y + kGap;
  }
}

void DrawCurve(SvgCanvas& canvas, const PlotArea& area, const PlotAxis& x_axis,
               const PlotAxis& y_axis, const std::vector<Segment>& segments,
               const std::string& color, double width, double opacity, bool dots) {
  for (const Segment& segment : segments) {
    std::vector<SvgPoint> points;
    for (const DataPoint& point : segment) {
      points.push_back({area.X(x_axis, point.x), area.Y(y_axis, point.y)});
    }
    if (points.size() > 1) {
      canvas.Polyline(Thin(points, area.right - area.left), color, width, opacity);
    }
    // A single point has no line to be seen by.
    if (!dots && points.size() > 1) continue;
    for (const SvgPoint& point : points) canvas.Circle(point, width + 1, color);
  }
}

void DrawHorizontalAxis(SvgCanvas& canvas, const PlotArea& area, const PlotAxis& axis,
                        const std::string& name) {
  canvas.Line({area.left, area.bottom}, {area.right, area.bottom}, kAxisInk, 1);
  double free_from = -kInfinity;
  for (size_t i = 0; i < axis.ticks.size(); ++i) {
    const double x = area.X(axis, axis.ticks[i]);
    canvas.Line({x, area.bottom}, {x, area.bottom + 5}, kAxisInk, 1);
    const double half = TextWidth(axis.labels[i], kLabelSize) / 2;
    if (x - half < free_from) continue;
    free_from = x + half + 8;
    canvas.Text({x, area.bottom + 20}, axis.labels[i],
                {.size = kLabelSize, .color = kMutedInk, .anchor = "middle"});
  }
  canvas.Text({(area.left + area.right) / 2, area.bottom + 42}, name,
              {.size = kLabelSize, .color = kMutedInk, .anchor = "middle"});
}

}  // namespace

std::string RenderLinePlot(const LinePlot& plot) {
  std::vector<Curve> curves;
  std::vector<LegendEntry> legend;
  Range x_range, y_range;
  std::set<double> places;  // distinct x, as far as they matter
  bool whole_x = true, any_smooth = false;
  for (size_t i = 0; i < plot.series.size(); ++i) {
    curves.push_back(MakeCurve(plot, i));
    legend.push_back({plot.series[i].name, curves[i].color});
    any_smooth = any_smooth || !curves[i].smooth.empty();
    for (const Segment& segment : curves[i].raw) {
      for (const DataPoint& point : segment) {
        x_range.Include(point.x);
        y_range.Include(point.y);
        if (places.size() <= kMaxPlaces) places.insert(point.x);
        whole_x = whole_x && point.x == std::floor(point.x);
      }
    }
  }
  if (legend.size() == 1 && !any_smooth) legend.clear();  // the title names the only line
  if (any_smooth)
    legend.push_back({"before smoothing", kMutedInk, LegendEntry::Sample::kFaintLine});

  SvgCanvas canvas(plot.width, plot.height, plot.title);
  const double heading = DrawHeading(canvas, plot.width, plot.title, plot.subtitle, legend);
  const PlotAxis y_axis = AxisOver(y_range, plot.log_y, 6, /*extend=*/true, /*whole=*/false);
  // A run starts at zero, even if its first point is step 1.
  if (!plot.log_x && x_range.low > 0 && x_range.low < 0.05 * x_range.high) x_range.low = 0;
  const PlotAxis x_axis = plot.log_x && !places.empty() && places.size() <= kMaxPlaces
                              ? LogAxisThrough({places.begin(), places.end()})
                              : AxisOver(x_range, plot.log_x, 8, /*extend=*/false, whole_x);
  const PlotArea area = {.left = LabelRoom(y_axis),
                         .top = heading + (plot.y_label.empty() ? 20 : 40),
                         .right = plot.width - 76,
                         .bottom = plot.height - (plot.x_label.empty() ? 40 : 60)};
  DrawVerticalAxis(canvas, area, y_axis, plot.y_label);
  DrawHorizontalAxis(canvas, area, x_axis, plot.x_label);
  if (x_range.low > x_range.high) {
    canvas.Text({(area.left + area.right) / 2, (area.top + area.bottom) / 2}, "no data",
                {.size = 16, .color = kMutedInk, .anchor = "middle"});
    return canvas.Finish();
  }

  for (const Curve& curve : curves) {
    if (curve.smooth.empty()) continue;
    DrawCurve(canvas, area, x_axis, y_axis, curve.raw, curve.color, 1, 0.3, /*dots=*/false);
  }
  std::vector<EndLabel> ends;
  for (const Curve& curve : curves) {
    if (curve.raw.empty()) continue;
    size_t num_points = 0;
    for (const Segment& segment : curve.strong()) num_points += segment.size();
    DrawCurve(canvas, area, x_axis, y_axis, curve.strong(), curve.color, 2.2, 1,
              /*dots=*/num_points <= 16);
    const DataPoint last = curve.strong().back().back();
    const SvgPoint at = {area.X(x_axis, last.x), area.Y(y_axis, last.y)};
    ends.push_back({at.y, at, ShortNumber(last.y, 4), curve.color});
  }
  Spread(ends, area.top, area.bottom);
  for (const EndLabel& end : ends) {
    canvas.Circle(end.at, 3.6, end.color);
    canvas.Text({end.at.x + 9, end.y + 4}, end.text,
                {.size = 12.5, .color = end.color.c_str(), .bold = true});
  }
  return canvas.Finish();
}

}  // namespace evenkeel
