// Axes of plots: where ticks go and what stands beside them, and the parts that every plot draws.
#pragma once

#include <string>
#include <vector>

#include "runtime/metrics/svg_canvas.h"

namespace evenkeel {

struct PlotAxis {
  double low = 0;  // of the range shown; low < high, and both positive if log
  double high = 1;
  bool log = false;
  std::vector<double> ticks;        // ascending, within [low, high]
  std::vector<std::string> labels;  // one a tick

  // Returns where `value` lies: 0 at low, 1 at high.
  double Position(double value) const;
};

// What is too large for the arithmetic of axes is treated like infinity: not drawn.
bool IsPlottable(double value);

// Covers [low, high] with round ticks 1, 2 or 5 times a power of ten apart, about `num_ticks`.
// `extend`: the range grows to the ticks around it. `whole`: values are integers, ticks too.
PlotAxis LinearAxis(double low, double high, int num_ticks, bool extend, bool whole);

// The same on a logarithmic scale; 0 < low <= high. Ticks are powers of ten and as many of their
// multiples as it takes to have a few.
PlotAxis LogAxis(double low, double high);

// The same with its ticks at `values` (ascending, positive, at least one), as for a few lengths
// that were measured. Multiples of 1024 are labelled in those: 16K is 16384.
PlotAxis LogAxisThrough(const std::vector<double>& values);

// Returns `value` in `digits` significant digits (but whole numbers below 10000 in full): "2.310",
// "5200", "12.35k", "1.2e-05".
std::string ShortNumber(double value, int digits);

// The part of the canvas inside the axes, in pixels.
struct PlotArea {
  double left = 0, top = 0, right = 0, bottom = 0;

  double X(const PlotAxis& axis, double value) const {
    return left + axis.Position(value) * (right - left);
  }
  double Y(const PlotAxis& axis, double value) const {
    return bottom - axis.Position(value) * (bottom - top);
  }
};

struct LegendEntry {
  std::string name;
  std::string color;
  enum class Sample { kLine, kFaintLine, kSquare } sample = Sample::kLine;
};

// Draws title, subtitle and legend from the top left; empty ones take no room. Returns the y below.
double DrawHeading(SvgCanvas& canvas, double width, const std::string& title,
                   const std::string& subtitle, const std::vector<LegendEntry>& legend);

// Returns the room that the labels left of a vertical axis need.
double LabelRoom(const PlotAxis& axis);

// Draws the horizontal grid lines with their labels, and the axis' name above its top end.
void DrawVerticalAxis(SvgCanvas& canvas, const PlotArea& area, const PlotAxis& axis,
                      const std::string& name);

}  // namespace evenkeel
