#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/philox.h"
#include "runtime/metrics/bar_plot.h"
#include "runtime/metrics/line_plot.h"
#include "runtime/metrics/plot_axis.h"

namespace evenkeel {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr double kInf = std::numeric_limits<double>::infinity();

// Checks that `text` is well-formed XML of the kind we write: balanced tags, quoted attributes,
// text without bare markup, valid numbers. Returns an error, or "".
std::string XmlError(const std::string& text) {
  std::vector<std::string> open;
  size_t i = 0;
  const auto good_text = [](const std::string& part) {
    for (size_t k = part.find('&'); k != std::string::npos; k = part.find('&', k + 1)) {
      const std::string entity = part.substr(k, part.find(';', k) - k + 1);
      if (entity != "&amp;" && entity != "&lt;" && entity != "&gt;" && entity != "&quot;" &&
          entity != "&#39;") {
        return false;
      }
    }
    return part.find('<') == std::string::npos &&
           std::none_of(part.begin(), part.end(),
                        [](char c) { return static_cast<unsigned char>(c) < 0x20 && c != '\n'; });
  };
  while (i < text.size()) {
    const size_t tag = text.find('<', i);
    const std::string between = text.substr(i, tag == std::string::npos ? tag : tag - i);
    if (!good_text(between) || between.find('>') != std::string::npos) return "text " + between;
    if (tag == std::string::npos) break;
    const size_t end = text.find('>', tag);
    if (end == std::string::npos) return "unclosed tag";
    std::string body = text.substr(tag + 1, end - tag - 1);
    i = end + 1;
    if (body[0] == '/') {
      if (open.empty() || open.back() != body.substr(1)) return "unbalanced " + body;
      open.pop_back();
      continue;
    }
    const bool empty_element = body.back() == '/';
    if (empty_element) body.pop_back();
    const size_t name_end = std::min(body.find(' '), body.size());
    for (size_t a = name_end; a < body.size();) {
      const size_t equals = body.find("=\"", a);
      if (body[a] != ' ' || equals == std::string::npos) return "attribute in " + body;
      const size_t close = body.find('"', equals + 2);
      if (close == std::string::npos) return "quote in " + body;
      const std::string value = body.substr(equals + 2, close - equals - 2);
      if (!good_text(value)) return "value " + value;
      if (value.find("nan") != std::string::npos || value.find("inf") != std::string::npos ||
          value.find("null") != std::string::npos) {
        return "number " + value;
      }
      a = close + 1;
    }
    if (!empty_element) open.push_back(body.substr(0, name_end));
  }
  return open.empty() ? "" : "open " + open.back();
}

int Count(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t i = text.find(part); i != std::string::npos; i = text.find(part, i + 1)) ++count;
  return count;
}

// The points of the n-th polyline drawn with that stroke width.
std::vector<std::pair<double, double>> PolylinePoints(const std::string& svg,
                                                      const std::string& stroke_width, int n = 0) {
  std::vector<std::pair<double, double>> points;
  for (size_t at = svg.find("<polyline"); at != std::string::npos;
       at = svg.find("<polyline", at + 1)) {
    const std::string element = svg.substr(at, svg.find("/>", at) - at);
    if (element.find("stroke-width=\"" + stroke_width + "\"") == std::string::npos || n-- > 0) {
      continue;
    }
    const char* p = element.c_str() + element.find('"') + 1;
    while (*p != '"') {
      char* end;
      const double x = std::strtod(p, &end);
      const double y = std::strtod(end + 1, &end);
      points.emplace_back(x, y);
      p = *end == ' ' ? end + 1 : end;
    }
    break;
  }
  return points;
}

TEST(XmlError, FindsErrors) {
  EXPECT_EQ(XmlError("<a b=\"c\"><d/>e &amp; f</a>"), "");
  for (const char* bad :
       {"<a>", "<a></b>", "<a b=c/>", "a & b", "<a b=\"nan\"/>", "<a>x > y</a>"}) {
    EXPECT_NE(XmlError(bad), "") << bad;
  }
}

TEST(LinearAxis, HasRoundTicks) {
  const PlotAxis a = LinearAxis(1.87, 5.43, 6, true, false);
  EXPECT_THAT(a.labels, ElementsAre("1.5", "2.0", "2.5", "3.0", "3.5", "4.0", "4.5", "5.0", "5.5"));
  EXPECT_THAT(LinearAxis(0, 100000, 5, true, true).labels,
              ElementsAre("0", "20k", "40k", "60k", "80k", "100k"));
  EXPECT_THAT(LinearAxis(0, 3, 8, false, true).labels, ElementsAre("0", "1", "2", "3"));
  EXPECT_THAT(LinearAxis(-0.02, 0.03, 5, true, false).labels,
              ElementsAre("-0.02", "-0.01", "0", "0.01", "0.02", "0.03"));
  EXPECT_THAT(LinearAxis(0, 2.5e6, 5, true, false).labels,
              ElementsAre("0", "0.5M", "1.0M", "1.5M", "2.0M", "2.5M"));
}

TEST(PlotAxis, KeepsItsPromisesForAnyRange) {
  const Philox random(7, 0);
  for (uint64_t i = 0; i < 2000; ++i) {
    const bool whole = i % 3 == 0, extend = i % 2 == 0;
    double low = (random.Uniform(4 * i) - 0.5) * std::pow(10, 40 * random.Uniform(4 * i + 1));
    double range = i % 7 == 0 ? 0 : std::pow(10, 60 * random.Uniform(4 * i + 2) - 30);
    if (whole) {
      low = std::floor(low);
      range = std::ceil(range);
    }
    std::vector<PlotAxis> axes = {LinearAxis(low, low + range, 6, extend, whole)};
    if (low > 0) axes.push_back(LogAxis(low, low + range));
    for (const PlotAxis& axis : axes) {
      ASSERT_LT(axis.low, axis.high) << low << " " << range;
      EXPECT_GE(axis.Position(low), -1e-6);
      EXPECT_LE(axis.Position(low + range), 1 + 1e-6);
      EXPECT_EQ(axis.ticks.size(), axis.labels.size());
      EXPECT_GE(axis.ticks.size(), 2u) << low << " " << range << " log " << axis.log;
      EXPECT_LE(axis.ticks.size(), 24u) << low << " " << range;
      EXPECT_TRUE(std::is_sorted(axis.ticks.begin(), axis.ticks.end()));
      for (const double tick : axis.ticks) {
        EXPECT_GE(axis.Position(tick), -1e-6);
        EXPECT_LE(axis.Position(tick), 1 + 1e-6);
      }
    }
  }
}

TEST(LogAxis, HasTicksAtEverySpan) {
  EXPECT_THAT(LogAxis(1e-3, 1e4).labels,
              ElementsAre("0.001", "0.01", "0.1", "1", "10", "100", "1000", "10k"));
  EXPECT_THAT(LogAxis(2, 11).labels, ElementsAre("2", "3", "5", "7", "10"));
  EXPECT_THAT(LogAxis(2.31, 2.39).labels,
              ElementsAre("2.30", "2.32", "2.34", "2.36", "2.38", "2.40"));
  EXPECT_THAT(LogAxisThrough({2048, 16384, 1048576}).labels, ElementsAre("2K", "16K", "1M"));
}

TEST(ShortNumber, KeepsDigits) {
  EXPECT_EQ(ShortNumber(1.91, 4), "1.910");
  EXPECT_EQ(ShortNumber(5200, 3), "5200");
  EXPECT_EQ(ShortNumber(12345, 4), "12.35k");
  EXPECT_EQ(ShortNumber(-0.25, 3), "-0.250");
  EXPECT_EQ(ShortNumber(1.25e-7, 3), "1.25e-07");
  EXPECT_EQ(ShortNumber(0, 3), "0");
}

LinePlot LossPlot() {
  LinePlot plot;
  plot.title = "Training loss";
  plot.x_label = "step";
  plot.y_label = "loss";
  plot.series = {{.name = "train", .x = {0, 10, 20, 30}, .y = {4, 2, 1, 1}}};
  return plot;
}

TEST(LinePlot, DrawsPointsWhereTheyBelong) {
  const std::string svg = RenderLinePlot(LossPlot());
  EXPECT_EQ(XmlError(svg), "");
  for (const char* text : {">Training loss<", ">step<", ">loss<", ">1.000<"}) {
    EXPECT_THAT(svg, HasSubstr(text));
  }
  EXPECT_THAT(svg, Not(HasSubstr("train<")));  // one line needs no legend
  const auto points = PolylinePoints(svg, "2.2");
  ASSERT_EQ(points.size(), 4u);
  // Equal steps along x; along y 4 -> 2 is twice 2 -> 1, downwards on the screen.
  EXPECT_NEAR(points[1].first - points[0].first, points[3].first - points[2].first, 0.02);
  EXPECT_NEAR(points[1].second - points[0].second, 2 * (points[2].second - points[1].second), 0.03);
  EXPECT_GT(points[1].second, points[0].second + 10);
  EXPECT_EQ(points[2].second, points[3].second);
  EXPECT_EQ(svg, RenderLinePlot(LossPlot()));
}

TEST(LinePlot, LogAxisMakesRatiosEqual) {
  LinePlot plot = LossPlot();
  plot.log_y = true;
  plot.series[0].x.push_back(40);
  plot.series[0].y.push_back(0);  // has no logarithm: left out
  const auto points = PolylinePoints(RenderLinePlot(plot), "2.2");
  ASSERT_EQ(points.size(), 4u);
  EXPECT_NEAR(points[1].second - points[0].second, points[2].second - points[1].second, 0.03);
}

TEST(LinePlot, SmoothsOverTheFaintValues) {
  LinePlot plot = LossPlot();
  plot.series[0].smoothing = 0.5;
  const std::string svg = RenderLinePlot(plot);
  EXPECT_EQ(XmlError(svg), "");
  const auto raw = PolylinePoints(svg, "1"), smooth = PolylinePoints(svg, "2.2");
  ASSERT_EQ(raw.size(), 4u);
  ASSERT_EQ(smooth.size(), 4u);
  EXPECT_EQ(smooth[0].second, raw[0].second);
  // Averages by hand: 4, (4 + 2 * 2) / 3 = 8 / 3, (4 + 4 + 4) / 7 = 12 / 7, 20 / 15.
  const double pixels_per_unit = (raw[1].second - raw[0].second) / 2;
  EXPECT_NEAR(smooth[1].second - raw[1].second, -(8.0 / 3 - 2) * pixels_per_unit, 0.05);
  EXPECT_NEAR(smooth[3].second - raw[3].second, -(20.0 / 15 - 1) * pixels_per_unit, 0.05);
  EXPECT_THAT(svg, HasSubstr(">before smoothing<"));
}

TEST(LinePlot, ShowsSeveralSeriesInDifferentColors) {
  LinePlot plot = LossPlot();
  plot.series.push_back({.name = "held out", .x = {10, 30}, .y = {2, 1.01}});
  const std::string svg = RenderLinePlot(plot);
  EXPECT_THAT(svg, HasSubstr(">train<"));
  EXPECT_THAT(svg, HasSubstr(">held out<"));
  EXPECT_GT(Count(svg, SeriesColor(0)), 2);
  EXPECT_GT(Count(svg, SeriesColor(1)), 2);
}

TEST(LinePlot, BreaksAtGapsAndSurvivesAnyValues) {
  LinePlot plot = LossPlot();
  plot.series[0].x = {0, 1, 2, 3, 4, 5, 6};
  plot.series[0].y = {3, 2, NAN, 1, kInf, 1, 2};
  std::string svg = RenderLinePlot(plot);
  EXPECT_EQ(XmlError(svg), "");
  EXPECT_EQ(Count(svg, "<polyline"), 2);
  EXPECT_EQ(PolylinePoints(svg, "2.2", 1).size(), 2u);

  const std::vector<std::vector<double>> tables = {
      {}, {1}, {0}, {-1}, {NAN}, {1, 1, 1}, {1e308, -1e308}, {5e-324, 1}, {1e-90, 1e90}, {-2, -1}};
  for (const auto& values : tables) {
    for (const bool log : {false, true}) {
      LinePlot any = LossPlot();
      any.log_x = any.log_y = log;
      any.series = {{.name = "s", .x = values, .y = values, .smoothing = 0.9}};
      svg = RenderLinePlot(any);
      EXPECT_EQ(XmlError(svg), "") << ::testing::PrintToString(values);
    }
  }
  LinePlot none;
  EXPECT_EQ(XmlError(RenderLinePlot(none)), "");
  EXPECT_THAT(RenderLinePlot(none), HasSubstr("no data"));
}

TEST(LinePlot, ThinsLongSeriesButKeepsTheirPeaks) {
  LinePlot plot = LossPlot();
  LineSeries& series = plot.series[0];
  series = {.name = "train"};
  for (int i = 0; i < 200000; ++i) {
    series.x.push_back(i);
    series.y.push_back(i == 77777 ? 10 : 1 + i % 2);
  }
  const std::string svg = RenderLinePlot(plot);
  EXPECT_LT(svg.size(), 100000u);
  const auto points = PolylinePoints(svg, "2.2");
  const auto highest = std::min_element(points.begin(), points.end(),
                                        [](auto& a, auto& b) { return a.second < b.second; });
  const double fraction =
      (highest->first - points.front().first) / (points.back().first - points.front().first);
  EXPECT_NEAR(fraction, 77777.0 / 199999, 0.002);
  EXPECT_TRUE(std::is_sorted(points.begin(), points.end(),
                             [](auto& a, auto& b) { return a.first < b.first; }));
}

TEST(Plots, EscapeHostileNames) {
  std::string hostile = "</text><script>alert(1)</script> & \"x\" ' \xFF\x01";
  hostile += '\0';
  LinePlot line = LossPlot();
  line.title = line.subtitle = line.x_label = line.y_label = hostile;
  line.series[0].name = hostile;
  line.series.push_back(line.series[0]);
  BarPlot bars;
  bars.title = bars.subtitle = bars.x_label = bars.y_label = hostile;
  bars.groups = {
      hostile,
      "\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3"
      "\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9"};
  bars.series = {{hostile, {1, 2}}, {hostile, {1, 2}}};
  bars.reference = 1.5;
  bars.reference_label = hostile;
  for (const std::string& svg : {RenderLinePlot(line), RenderBarPlot(bars)}) {
    EXPECT_EQ(XmlError(svg), "");
    EXPECT_THAT(svg, Not(HasSubstr("<script")));
  }
}

TEST(BarPlot, DrawsBarsFromZeroInProportion) {
  BarPlot plot;
  plot.title = "Load";
  plot.y_label = "ms";
  plot.groups = {"a", "b", "c"};
  plot.series = {{"before", {4, 2, NAN}}, {"after", {3, -1, 3}}};
  plot.reference = 3;
  plot.reference_label = "mean";
  const std::string svg = RenderBarPlot(plot);
  EXPECT_EQ(XmlError(svg), "");
  for (const char* text : {">before<", ">after<", ">mean<", ">ms<", ">a<", ">4.00<", ">-1.00<"}) {
    EXPECT_THAT(svg, HasSubstr(text));
  }
  EXPECT_EQ(Count(svg, "stroke-dasharray"), 1);
  // Five bars in series order per group, after the background and two legend squares.
  std::vector<double> heights;
  for (size_t at = svg.find("<rect"); at != std::string::npos; at = svg.find("<rect", at + 1)) {
    const size_t value = svg.find(" height=\"", at) + 9;
    heights.push_back(std::strtod(svg.c_str() + value, nullptr));
  }
  ASSERT_EQ(heights.size(), 3u + 5u);
  const double unit = heights[3] / 4;
  EXPECT_GT(unit, 20);
  EXPECT_THAT(
      std::vector<double>(heights.begin() + 4, heights.end()),
      ElementsAre(::testing::DoubleNear(3 * unit, 0.05), ::testing::DoubleNear(2 * unit, 0.05),
                  ::testing::DoubleNear(unit, 0.05), ::testing::DoubleNear(3 * unit, 0.05)));
}

TEST(BarPlot, SurvivesAnySize) {
  for (const int num_groups : {0, 1, 7, 64, 500}) {
    for (const int num_series : {0, 1, 3}) {
      for (const char* name :
           {"", "server", "a name that is far too long for its bar to stand on"}) {
        BarPlot plot;
        for (int g = 0; g < num_groups; ++g) plot.groups.push_back(name + std::to_string(g));
        for (int s = 0; s < num_series; ++s) {
          plot.series.push_back({"s", std::vector<double>(static_cast<size_t>(num_groups), s)});
        }
        EXPECT_EQ(XmlError(RenderBarPlot(plot)), "") << num_groups << " " << num_series;
      }
    }
  }
}

}  // namespace
}  // namespace evenkeel
