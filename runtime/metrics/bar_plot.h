// Grouped bars as SVG text: the load of servers before and after balancing, a table of benchmarks.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace evenkeel {

struct BarSeries {
  std::string name;
  std::vector<double> values;  // one a group; what is not finite has no bar
};

struct BarPlot {
  std::string title;
  std::string subtitle;
  std::string x_label;
  std::string y_label;
  std::vector<std::string> groups;
  std::vector<BarSeries> series;
  std::optional<double> reference;  // a dashed line across, such as the mean
  std::string reference_label;
  double width = 880;  // pixels
  double height = 460;
};

// Returns an SVG document. Pure: the same plot gives the same bytes. Bars start at zero; values
// stand on their bars, and names under their groups, where there is room.
std::string RenderBarPlot(const BarPlot& plot);

}  // namespace evenkeel
