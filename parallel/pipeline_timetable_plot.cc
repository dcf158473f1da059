// DrawTimetable: the SVG picture.
#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "parallel/pipeline_timetable.h"
#include "runtime/metrics/plot_axis.h"
#include "runtime/metrics/svg_canvas.h"

namespace evenkeel {
namespace {

constexpr double kWidth = 960, kMargin = 24;  // pixels
constexpr double kLaneHeight = 22, kLaneGap = 4;
constexpr double kTextSize = 12, kNumberSize = 11;
constexpr double kLightest = 0.55;  // how far the last chunk's colour is on the way to white
constexpr char kIdle[] = "#eef1f4";

constexpr std::array<int, 3> kForwardColor = {0x25, 0x63, 0xc9};
constexpr std::array<int, 3> kBackwardColor = {0xd9, 0x63, 0x0f};

std::string ColorOf(PipelinePhase phase, double lightness) {
  const auto& color = phase == PipelinePhase::kForward ? kForwardColor : kBackwardColor;
  const auto mix = [lightness](int value) {
    return static_cast<int>(std::lround(value + lightness * (255 - value)));
  };
  return absl::StrFormat("#%02x%02x%02x", mix(color[0]), mix(color[1]), mix(color[2]));
}

struct TimeUnit {
  double seconds = 1;
  const char* name = "s";
};

TimeUnit UnitFor(double seconds) {
  if (seconds >= 2 || seconds <= 0) return {1, "s"};
  if (seconds >= 2e-3) return {1e-3, "ms"};
  return {1e-6, "us"};
}

void DrawTimeAxis(SvgCanvas& canvas, const PlotArea& area, const PlotAxis& axis,
                  const std::string& name) {
  canvas.Line({area.left, area.bottom}, {area.right, area.bottom}, kAxisInk, 1);
  for (size_t i = 0; i < axis.ticks.size(); ++i) {
    const double x = area.X(axis, axis.ticks[i]);
    canvas.Line({x, area.bottom}, {x, area.bottom + 5}, kAxisInk, 1);
    canvas.Text({x, area.bottom + 20}, axis.labels[i],
                {.size = kTextSize, .color = kMutedInk, .anchor = "middle"});
  }
  canvas.Text({(area.left + area.right) / 2, area.bottom + 40}, name,
              {.size = kTextSize, .color = kMutedInk, .anchor = "middle"});
}

}  // namespace

std::string DrawTimetable(const Timetable& timetable) {
  const size_t ranks = timetable.actions.size();
  const TimeUnit unit = UnitFor(timetable.makespan);
  const double makespan = timetable.makespan / unit.seconds;
  const double lanes = static_cast<double>(ranks) * (kLaneHeight + kLaneGap);
  const double chunks = std::max(1, timetable.num_chunks - 1);

  // The heading's height is known once it is drawn, the canvas' before: room for two rows of it.
  constexpr double kHeadingRoom = 112;
  const double height = kHeadingRoom + lanes + 64;
  SvgCanvas canvas(kWidth, height, "Pipeline timetable");
  std::string subtitle =
      absl::StrFormat("%d ranks, %s %s, %.1f%% idle", ranks, ShortNumber(makespan, 3), unit.name,
                      100 * timetable.total_idle_share);
  if (timetable.num_chunks > 1) {
    absl::StrAppend(&subtitle, "; chunks 0 to ", timetable.num_chunks - 1, " from dark to light");
  }
  DrawHeading(canvas, kWidth, "Pipeline timetable", subtitle,
              {{"forward", ColorOf(PipelinePhase::kForward, 0), LegendEntry::Sample::kSquare},
               {"backward", ColorOf(PipelinePhase::kBackward, 0), LegendEntry::Sample::kSquare},
               {"idle", kIdle, LegendEntry::Sample::kSquare}});

  const PlotAxis axis = LinearAxis(0, makespan > 0 ? makespan : 1, 10, false, false);
  const double names = TextWidth(absl::StrCat("rank ", ranks), kTextSize);
  const PlotArea area = {.left = kMargin + names + 8,
                         .top = kHeadingRoom,
                         .right = kWidth - kMargin - TextWidth("100.0%", kTextSize) - 8,
                         .bottom = kHeadingRoom + lanes};
  for (size_t rank = 0; rank < ranks; ++rank) {
    const double top = area.top + static_cast<double>(rank) * (kLaneHeight + kLaneGap);
    const double baseline = top + kLaneHeight / 2 + 4;
    canvas.Text({area.left - 8, baseline}, absl::StrCat("rank ", rank),
                {.size = kTextSize, .anchor = "end"});
    canvas.Text({area.right + 8, baseline},
                absl::StrFormat("%.1f%%", 100 * timetable.idle_share[rank]),
                {.size = kTextSize, .color = kMutedInk});
    canvas.Rect(area.left, top, area.right - area.left, kLaneHeight, kIdle);
    for (const TimedAction& timed : timetable.actions[rank]) {
      const double left = area.X(axis, timed.start / unit.seconds);
      const double width = area.X(axis, timed.end / unit.seconds) - left;
      const double lightness = kLightest * timed.action.chunk / chunks;
      // A hairline between boxes, as long as they are wide enough to lose it.
      const double gap = width > 4 ? 1 : 0;
      canvas.Rect(left, top, width - gap, kLaneHeight, ColorOf(timed.action.phase, lightness));
      const std::string number = absl::StrCat(timed.action.micro_batch);
      if (TextWidth(number, kNumberSize) + 3 > width) continue;
      canvas.Text({left + (width - gap) / 2, baseline}, number,
                  {.size = kNumberSize,
                   .color = lightness > kLightest / 2 ? kInk : "#ffffff",
                   .anchor = "middle"});
    }
  }
  DrawTimeAxis(canvas, area, axis, absl::StrCat("time (", unit.name, ")"));
  return canvas.Finish();
}

}  // namespace evenkeel
