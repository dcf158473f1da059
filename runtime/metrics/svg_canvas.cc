#include "runtime/metrics/svg_canvas.h"

#include <array>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "runtime/metrics/text_escape.h"

namespace evenkeel {
namespace {

constexpr char kBackground[] = "#fcfcfd";
constexpr char kBorder[] = "#d9dde3";

// Hundredths of a pixel are finer than any screen.
std::string Pixels(double value) {
  return JsonNumber(std::round(value * 100) / 100 + 0.0);
}

}  // namespace

const char* SeriesColor(size_t index) {
  constexpr std::array<const char*, 8> colors = {"#2563c9", "#d9630f", "#12866b", "#8a3ab9",
                                                 "#c5283d", "#0d8fb3", "#8a6d0b", "#52606d"};
  return colors[index % colors.size()];
}

SvgCanvas::SvgCanvas(double width, double height, const std::string& description) {
  absl::StrAppend(&svg_, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"", Pixels(width),
                  "\" height=\"", Pixels(height), "\" viewBox=\"0 0 ", Pixels(width), " ",
                  Pixels(height),
                  "\" role=\"img\" font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, "
                  "'Helvetica Neue', Arial, sans-serif\">\n");
  absl::StrAppend(&svg_, "<title>", XmlText(description), "</title>\n");
  absl::StrAppend(&svg_, "<rect x=\"0.5\" y=\"0.5\" width=\"", Pixels(width - 1), "\" height=\"",
                  Pixels(height - 1), "\" rx=\"6\" fill=\"", kBackground, "\" stroke=\"", kBorder,
                  "\"/>\n");
}

void SvgCanvas::Rect(double x, double y, double width, double height, const std::string& color,
                     double corner) {
  absl::StrAppend(&svg_, "<rect x=\"", Pixels(x), "\" y=\"", Pixels(y), "\" width=\"",
                  Pixels(width), "\" height=\"", Pixels(height), "\"");
  if (corner > 0) absl::StrAppend(&svg_, " rx=\"", Pixels(corner), "\"");
  absl::StrAppend(&svg_, " fill=\"", color, "\"/>\n");
}

void SvgCanvas::Line(SvgPoint from, SvgPoint to, const std::string& color, double width,
                     bool dashed) {
  absl::StrAppend(&svg_, "<line x1=\"", Pixels(from.x), "\" y1=\"", Pixels(from.y), "\" x2=\"",
                  Pixels(to.x), "\" y2=\"", Pixels(to.y), "\" stroke=\"", color,
                  "\" stroke-width=\"", Pixels(width), "\"");
  if (dashed) svg_ += " stroke-dasharray=\"5 4\"";
  svg_ += "/>\n";
}

void SvgCanvas::Polyline(const std::vector<SvgPoint>& points, const std::string& color,
                         double width, double opacity) {
  svg_ += "<polyline points=\"";
  for (size_t i = 0; i < points.size(); ++i) {
    absl::StrAppend(&svg_, i == 0 ? "" : " ", Pixels(points[i].x), ",", Pixels(points[i].y));
  }
  absl::StrAppend(&svg_, "\" fill=\"none\" stroke=\"", color, "\" stroke-width=\"", Pixels(width),
                  "\" stroke-linejoin=\"round\" stroke-linecap=\"round\"");
  if (opacity < 1) absl::StrAppend(&svg_, " stroke-opacity=\"", Pixels(opacity), "\"");
  svg_ += "/>\n";
}

void SvgCanvas::Circle(SvgPoint center, double radius, const std::string& color) {
  absl::StrAppend(&svg_, "<circle cx=\"", Pixels(center.x), "\" cy=\"", Pixels(center.y), "\" r=\"",
                  Pixels(radius), "\" fill=\"", color, "\"/>\n");
}

void SvgCanvas::Text(SvgPoint at, const std::string& text, const SvgTextStyle& style) {
  absl::StrAppend(&svg_, "<text x=\"", Pixels(at.x), "\" y=\"", Pixels(at.y), "\" font-size=\"",
                  Pixels(style.size), "\" fill=\"", style.color, "\" text-anchor=\"", style.anchor,
                  "\"");
  if (style.bold) svg_ += " font-weight=\"600\"";
  if (style.rotation != 0) {
    absl::StrAppend(&svg_, " transform=\"rotate(", Pixels(style.rotation), " ", Pixels(at.x), " ",
                    Pixels(at.y), ")\"");
  }
  absl::StrAppend(&svg_, ">", XmlText(text), "</text>\n");
}

std::string SvgCanvas::Finish() {
  return svg_ + "</svg>\n";
}

double TextWidth(const std::string& text, double size, bool bold) {
  double em = 0;
  for (const char c : ValidUtf8(text)) {
    if ((static_cast<unsigned char>(c) & 0xC0) == 0x80) continue;  // inside a code point
    if (std::strchr(" .,:;!|'()[]/\\ijltfrI-", c) != nullptr) {
      em += 0.4;
    } else if (std::strchr("mwMW@%", c) != nullptr) {
      em += 0.95;
    } else if (c >= 'A' && c <= 'Z') {
      em += 0.72;
    } else {
      em += 0.63;
    }
  }
  return em * size * (bold ? 1.08 : 1);
}

}  // namespace evenkeel
