// DrawLengthPlan: the SVG picture.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/length_plan.h"
#include "runtime/metrics/plot_axis.h"
#include "runtime/metrics/svg_canvas.h"

namespace evenkeel {
namespace {

constexpr double kWidth = 960, kMargin = 24, kTextSize = 12;  // pixels
constexpr double kHeadingRoom = 132, kPanelHeight = 170, kPanelGap = 58, kFootRoom = 56;
constexpr double kNarrowest = 5;  // a bar that still has a gap beside it
constexpr double kMiB = 1 << 20;

constexpr char kOwn[] = "#2563c9", kOthers[] = "#8fb4ea", kBefore[] = "#d9630f";
constexpr char kSent[] = "#5f7f3a", kReceived[] = "#a9c77f";

// Bars side by side, one a server.
class Panel {
 public:
  Panel(SvgCanvas& canvas, const PlotArea& area, const PlotAxis& axis, size_t servers)
      : canvas_(canvas), area_(area), axis_(axis) {
    step_ = (area.right - area.left) / static_cast<double>(servers);
  }

  // From `low` to `high`, in part `part` of `parts` of the server's place.
  void Bar(size_t server, double low, double high, const char* color, int part = 0,
           int parts = 1) const {
    const double gap = step_ > kNarrowest ? std::min(6.0, step_ / 5) : 0;
    const double width = (step_ - gap) / parts;
    const double top = area_.Y(axis_, high), bottom = area_.Y(axis_, low);
    if (bottom - top <= 0) return;
    canvas_.Rect(area_.left + static_cast<double>(server) * step_ + gap / 2 + part * width, top,
                 width, bottom - top, color);
  }

  void Mean(double value, const std::string& text) const {
    const double y = area_.Y(axis_, value);
    canvas_.Line({area_.left, y}, {area_.right, y}, kInk, 1, true);
    canvas_.Text({area_.right + 6, y + 4}, text, {.size = kTextSize, .color = kMutedInk});
  }

  void BaseLine() const {
    canvas_.Line({area_.left, area_.bottom}, {area_.right, area_.bottom}, kAxisInk, 1);
  }

 private:
  SvgCanvas& canvas_;
  const PlotArea area_;
  const PlotAxis& axis_;
  double step_ = 0;
};

void DrawServerAxis(SvgCanvas& canvas, const PlotArea& area, size_t servers) {
  const double step = (area.right - area.left) / static_cast<double>(servers);
  const PlotAxis axis =
      LinearAxis(0, std::max(1.0, static_cast<double>(servers) - 1), 16, false, true);
  for (size_t i = 0; i < axis.ticks.size(); ++i) {
    const double x = area.left + (axis.ticks[i] + 0.5) * step;
    if (x > area.right) continue;
    canvas.Text({x, area.bottom + 18}, axis.labels[i],
                {.size = kTextSize, .color = kMutedInk, .anchor = "middle"});
  }
  canvas.Text({(area.left + area.right) / 2, area.bottom + 38}, "server",
              {.size = kTextSize, .color = kMutedInk, .anchor = "middle"});
}

}  // namespace

std::string DrawLengthPlan(const LengthPlanReport& report) {
  const size_t servers = report.after.load.size();
  const double mean = std::accumulate(report.after.load.begin(), report.after.load.end(), 0.0) /
                      static_cast<double>(servers);
  const double most_bytes = static_cast<double>(
      std::max(*std::max_element(report.after.send_bytes.begin(), report.after.send_bytes.end()),
               *std::max_element(report.after.recv_bytes.begin(), report.after.recv_bytes.end())));
  const double height = kHeadingRoom + 3 * kPanelHeight + 2 * kPanelGap + kFootRoom;
  SvgCanvas canvas(kWidth, height, "Load of attention servers before and after planning");
  DrawHeading(
      canvas, kWidth, "Core attention over servers",
      absl::StrFormat("%d documents, %d servers of %d tokens: heaviest %.2f times the mean where "
                      "the tokens are, %.3f times as planned",
                      report.pool.documents.size(), servers, report.options.tokens_per_server,
                      LengthPlanReport::HeaviestToMean(report.before),
                      LengthPlanReport::HeaviestToMean(report.after)),
      {{"where the tokens are", kBefore, LegendEntry::Sample::kSquare},
       {"planned: own queries", kOwn, LegendEntry::Sample::kSquare},
       {"others' queries", kOthers, LegendEntry::Sample::kSquare},
       {"sent", kSent, LegendEntry::Sample::kSquare},
       {"received", kReceived, LegendEntry::Sample::kSquare}});

  // Both loads on one scale: what a slow step looks like, and what is gained.
  const PlotAxis loads =
      LinearAxis(0, std::max(1.2, LengthPlanReport::HeaviestToMean(report.before)), 5, true, false);
  const PlotAxis bytes = LinearAxis(0, std::max(1.0, most_bytes / kMiB), 5, true, false);
  PlotArea area = {.left = kMargin + std::max(LabelRoom(loads), LabelRoom(bytes)) + 8,
                   .top = kHeadingRoom,
                   .right = kWidth - kMargin - TextWidth("mean", kTextSize) - 6,
                   .bottom = kHeadingRoom + kPanelHeight};
  const auto next = [&area] {
    area.top += kPanelHeight + kPanelGap;
    area.bottom += kPanelHeight + kPanelGap;
  };

  DrawVerticalAxis(canvas, area, loads, "load before, of the mean");
  const Panel before(canvas, area, loads, servers);
  for (size_t s = 0; s < servers; ++s) before.Bar(s, 0, report.before.load[s] / mean, kBefore);
  before.Mean(1, "mean");
  before.BaseLine();

  next();
  DrawVerticalAxis(canvas, area, loads, "load as planned, of the mean");
  const Panel after(canvas, area, loads, servers);
  for (size_t s = 0; s < servers; ++s) {
    const double own = report.own_load[s] / mean;
    after.Bar(s, 0, own, kOwn);
    after.Bar(s, own, report.after.load[s] / mean, kOthers);
  }
  after.Mean(1, "mean");
  after.BaseLine();

  next();
  DrawVerticalAxis(canvas, area, bytes, "queries, keys and values of a layer (MiB)");
  const Panel traffic(canvas, area, bytes, servers);
  for (size_t s = 0; s < servers; ++s) {
    traffic.Bar(s, 0, static_cast<double>(report.after.send_bytes[s]) / kMiB, kSent, 0, 2);
    traffic.Bar(s, 0, static_cast<double>(report.after.recv_bytes[s]) / kMiB, kReceived, 1, 2);
  }
  traffic.BaseLine();
  DrawServerAxis(canvas, area, servers);
  return canvas.Finish();
}

}  // namespace evenkeel
