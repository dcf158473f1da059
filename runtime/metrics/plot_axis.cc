#include "runtime/metrics/plot_axis.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace evenkeel {
namespace {

constexpr double kMargin = 24;
constexpr double kTickSize = 12, kTitleSize = 18, kSubtitleSize = 13, kLegendSize = 12.5;

struct Scale {
  double divisor;
  const char* suffix;
};

Scale ScaleOf(double magnitude) {
  if (magnitude >= 1e12) return {1e12, "T"};
  if (magnitude >= 1e9) return {1e9, "B"};
  if (magnitude >= 1e6) return {1e6, "M"};
  if (magnitude >= 1e4) return {1e3, "k"};
  return {1, ""};
}

// Labels of ticks `step` apart: one scale and one number of decimals for all.
std::vector<std::string> TickLabels(const std::vector<double>& ticks, double step) {
  double largest = 0;
  for (const double tick : ticks) largest = std::max(largest, std::abs(tick));
  const Scale scale = ScaleOf(largest);
  const double decimals = std::ceil(-std::log10(step / scale.divisor) - 1e-9);
  std::vector<std::string> labels;
  for (const double tick : ticks) {
    if (std::abs(tick) < step / 2) {
      labels.push_back("0");
    } else if (largest >= 1e15 || largest < 1e-3 || decimals > 8) {
      labels.push_back(absl::StrFormat("%g", tick));
    } else {
      const int places = static_cast<int>(std::max(0.0, decimals));
      labels.push_back(absl::StrFormat("%.*f%s", places, tick / scale.divisor, scale.suffix));
    }
  }
  return labels;
}

// The label of a tick of its own, without zeros at its end.
std::string TickLabel(double tick) {
  // Lengths are powers of two as often as of ten, and 16384 tokens are known as 16K.
  if (tick >= 1024 && tick < 1e15 && std::fmod(tick, 1024) == 0) {
    const bool mega = std::fmod(tick, 1 << 20) == 0;
    return absl::StrFormat("%.0f%s", tick / (mega ? 1 << 20 : 1 << 10), mega ? "M" : "K");
  }
  if (tick >= 1e15) return absl::StrFormat("%g", tick);
  const Scale scale = ScaleOf(tick);
  return absl::StrFormat("%.4g%s", tick / scale.divisor, scale.suffix);
}

// Returns 1, 2 or 5 times a power of ten, whichever cuts `range` into nearest to num_ticks parts.
double NiceStep(double range, int num_ticks) {
  const double raw = range / num_ticks;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  const double mantissa = raw / power;
  return (mantissa < 1.5 ? 1 : mantissa < 3.5 ? 2 : mantissa < 7.5 ? 5 : 10) * power;
}

std::vector<double> LogTicks(double low, double high, const std::vector<double>& mantissas,
                             int every) {
  std::vector<double> ticks;
  for (int k = static_cast<int>(std::floor(std::log10(low))); k <= std::log10(high) + 1e-9; ++k) {
    if (k % every != 0) continue;
    for (const double mantissa : mantissas) {
      const double tick = mantissa * std::pow(10, k);
      if (tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9)) ticks.push_back(tick);
    }
  }
  return ticks;
}

}  // namespace

double PlotAxis::Position(double value) const {
  if (log) return std::log(value / low) / std::log(high / low);
  return (value - low) / (high - low);
}

bool IsPlottable(double value) {
  return std::abs(value) < 1e100;
}

PlotAxis LinearAxis(double low, double high, int num_ticks, bool extend, bool whole) {
  // A range too small for its values is widened: a constant still gets an axis.
  const double magnitude = std::max(std::abs(low), std::abs(high));
  if (high - low <= 1e-9 * magnitude || high - low < 1e-100) {
    const double widen = whole ? std::max(1.0, 1e-6 * magnitude) : std::max(0.05 * magnitude, 1e-6);
    low -= widen;
    high += widen;
  }
  double step = NiceStep(high - low, num_ticks);
  if (whole) step = std::max(step, 1.0);
  PlotAxis axis;
  if (extend) {
    low = std::floor(low / step + 1e-9) * step;
    high = std::ceil(high / step - 1e-9) * step;
  }
  axis.low = low;
  axis.high = high;
  const double first = std::ceil(low / step - 1e-9), last = std::floor(high / step + 1e-9);
  for (double k = first; k <= last; ++k) axis.ticks.push_back(k * step);
  axis.labels = TickLabels(axis.ticks, step);
  return axis;
}

PlotAxis LogAxis(double low, double high) {
  const double padding = std::max(std::pow(high / low, 0.04), 1.01);
  PlotAxis axis;
  axis.log = true;
  axis.low = low / padding;
  axis.high = high * padding;
  const double decades = std::log10(axis.high / axis.low);
  if (decades > 8) {
    axis.ticks = LogTicks(axis.low, axis.high, {1}, static_cast<int>(std::ceil(decades / 8)));
  } else {
    const std::vector<std::vector<double>> choices = {
        {1}, {1, 3}, {1, 2, 5}, {1, 2, 3, 5, 7}, {1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9}};
    for (const auto& mantissas : choices) {
      axis.ticks = LogTicks(axis.low, axis.high, mantissas, 1);
      if (axis.ticks.size() >= 4) break;
    }
  }
  if (axis.ticks.size() < 4) {
    // Less than about a third of a decade: a linear axis' ticks at their logarithmic places.
    PlotAxis linear = LinearAxis(axis.low, axis.high, 5, false, false);
    axis.ticks = std::move(linear.ticks);
    axis.labels = std::move(linear.labels);
    return axis;
  }
  for (const double tick : axis.ticks) axis.labels.push_back(TickLabel(tick));
  return axis;
}

PlotAxis LogAxisThrough(const std::vector<double>& values) {
  PlotAxis axis = LogAxis(values.front(), values.back());
  axis.ticks = values;
  axis.labels.clear();
  for (const double value : values) axis.labels.push_back(TickLabel(value));
  return axis;
}

std::string ShortNumber(double value, int digits) {
  const double magnitude = std::abs(value);
  if (magnitude == 0) return "0";
  if (magnitude < 1e-3 || magnitude >= 1e15) return absl::StrFormat("%.*g", digits, value);
  const Scale scale = ScaleOf(magnitude);
  const double leading = std::floor(std::log10(magnitude / scale.divisor));
  const int decimals = std::max(0, digits - 1 - static_cast<int>(leading));
  return absl::StrFormat("%.*f%s", decimals, value / scale.divisor, scale.suffix);
}

double DrawHeading(SvgCanvas& canvas, double width, const std::string& title,
                   const std::string& subtitle, const std::vector<LegendEntry>& legend) {
  double y = 18;
  if (!title.empty()) {
    y += kTitleSize;
    canvas.Text({kMargin, y}, title, {.size = kTitleSize, .bold = true});
  }
  if (!subtitle.empty()) {
    y += kSubtitleSize + 8;
    canvas.Text({kMargin, y}, subtitle, {.size = kSubtitleSize, .color = kMutedInk});
  }
  if (!legend.empty()) {
    constexpr double kRow = 20;
    y += kRow + 6;
    double x = kMargin;
    for (const LegendEntry& entry : legend) {
      const double sample = entry.sample == LegendEntry::Sample::kSquare ? 11 : 20;
      const double entry_width = sample + 7 + TextWidth(entry.name, kLegendSize) + 18;
      if (x > kMargin && x + entry_width > width - kMargin) {
        x = kMargin;
        y += kRow;
      }
      if (entry.sample == LegendEntry::Sample::kSquare) {
        canvas.Rect(x, y - 10, sample, sample, entry.color, 2);
      } else {
        const bool faint = entry.sample == LegendEntry::Sample::kFaintLine;
        canvas.Polyline({{x, y - 4}, {x + sample, y - 4}}, entry.color, faint ? 1.5 : 3.5,
                        faint ? 0.45 : 1);
      }
      canvas.Text({x + sample + 7, y}, entry.name, {.size = kLegendSize});
      x += entry_width;
    }
  }
  return y;
}

double LabelRoom(const PlotAxis& axis) {
  double room = 0;
  for (const std::string& label : axis.labels) room = std::max(room, TextWidth(label, kTickSize));
  return kMargin + room + 10;
}

void DrawVerticalAxis(SvgCanvas& canvas, const PlotArea& area, const PlotAxis& axis,
                      const std::string& name) {
  for (size_t i = 0; i < axis.ticks.size(); ++i) {
    const double y = area.Y(axis, axis.ticks[i]);
    canvas.Line({area.left, y}, {area.right, y}, kGridInk, 1);
    canvas.Text({area.left - 10, y + 4}, axis.labels[i],
                {.size = kTickSize, .color = kMutedInk, .anchor = "end"});
  }
  if (!name.empty()) {
    canvas.Text({kMargin, area.top - 12}, name, {.size = kTickSize, .color = kMutedInk});
  }
}

}  // namespace evenkeel
