// A drawing in SVG: the few shapes our plots are made of. No external fonts, styles or scripts, and
// a background of its own, so that it reads alike in browsers, light or dark, and in documents.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace evenkeel {

// Colours of text and lines, dark on the light background.
inline constexpr char kInk[] = "#1f2933";
inline constexpr char kMutedInk[] = "#616e7c";
inline constexpr char kAxisInk[] = "#9aa5b1";
inline constexpr char kGridInk[] = "#e4e7eb";

// Returns the colour of series `index`; told apart by most colour-blind readers; repeats after 8.
const char* SeriesColor(size_t index);

struct SvgPoint {
  double x = 0;  // in pixels from the left
  double y = 0;  // in pixels from the top
};

struct SvgTextStyle {
  double size = 12;  // pixels
  const char* color = kInk;
  const char* anchor = "start";  // start, middle, end: what of the text is at the point
  bool bold = false;
  double rotation = 0;  // degrees clockwise around the point
};

class SvgCanvas {
 public:
  // `description` is what a screen reader says.
  SvgCanvas(double width, double height, const std::string& description);

  void Rect(double x, double y, double width, double height, const std::string& color,
            double corner = 0);
  void Line(SvgPoint from, SvgPoint to, const std::string& color, double width,
            bool dashed = false);
  void Polyline(const std::vector<SvgPoint>& points, const std::string& color, double width,
                double opacity = 1);
  void Circle(SvgPoint center, double radius, const std::string& color);
  // `text` may be anything: it is escaped.
  void Text(SvgPoint at, const std::string& text, const SvgTextStyle& style);

  // Returns the finished document.
  std::string Finish();

 private:
  std::string svg_;
};

// Estimates the width of `text` in pixels: there is no font to ask. Errs on the wide side.
double TextWidth(const std::string& text, double size, bool bold = false);

}  // namespace evenkeel
