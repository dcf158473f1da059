// Line plots as SVG text: the loss of a run, several runs beside each other, tokens per second over
// length.
#pragma once

#include <string>
#include <vector>

namespace evenkeel {

struct LineSeries {
  std::string name = "";
  std::vector<double> x = {};
  // As many as x; what is not finite (or not positive on a log axis) is a gap.
  std::vector<double> y = {};
  // Weight w of the past in an exponential moving average, 0 <= w < 1. If above 0, the average is
  // drawn strong over the faint values themselves:
  //   s_n = w s_{n-1} + (1 - w) y_n, shown as s_n / (1 - w^n)
  double smoothing = 0;
};

struct LinePlot {
  std::string title;
  std::string subtitle;  // a line under the title: model, ranks, settings
  std::string x_label;
  std::string y_label;
  bool log_x = false;
  bool log_y = false;
  std::vector<LineSeries> series;
  double width = 880;  // pixels
  double height = 500;
};

// Returns an SVG document. Pure: the same plot gives the same bytes. Long series are thinned to
// what a pixel column can show (its first, lowest, highest and last value).
std::string RenderLinePlot(const LinePlot& plot);

}  // namespace evenkeel
