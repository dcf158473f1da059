#include "runtime/metrics/human_format.h"

#include <cmath>
#include <cstdlib>
#include <limits>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/metrics/text_escape.h"

namespace evenkeel {
namespace {

TEST(FormatDuration, RoundsBeforeItSplits) {
  const std::vector<std::pair<double, std::string>> cases = {
      {0, "0s"},        {0.43, "430ms"},   {0.9996, "1.0s"}, {3.21, "3.2s"},    {9.96, "10s"},
      {59.4, "59s"},    {59.7, "1m00s"},   {192, "3m12s"},   {3599.6, "1h00m"}, {18420, "5h07m"},
      {86399, "1d00h"}, {273600, "3d04h"}, {-1, "--"},       {NAN, "--"},       {INFINITY, "--"},
  };
  for (const auto& [seconds, text] : cases) EXPECT_EQ(FormatDuration(seconds), text) << seconds;
}

TEST(FormatCount, ShowsThreeDigits) {
  const std::vector<std::pair<double, std::string>> cases = {
      {0, "0"},           {7, "7"},
      {999, "999"},       {1000, "1.00k"},
      {12345, "12.3k"},   {999499, "999k"},
      {999999, "1.00M"},  {1234567, "1.23M"},
      {7e9, "7.00B"},     {1.5e12, "1.50T"},
      {5e15, "5.00e+15"}, {0.5, "0.50"},
      {12.34, "12.3"},    {-1234567, "-1.23M"},
      {NAN, "nan"},       {-INFINITY, "-inf"},
  };
  for (const auto& [count, text] : cases) EXPECT_EQ(FormatCount(count), text) << count;
}

TEST(TextEscape, ReplacesWhatIsNotUtf8) {
  const std::string bad = "\xEF\xBF\xBD";
  EXPECT_EQ(ValidUtf8("plain \xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80"),
            "plain \xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80");
  EXPECT_EQ(ValidUtf8("\xFF"), bad);
  EXPECT_EQ(ValidUtf8("a\xC3"), "a" + bad);                         // cut short
  EXPECT_EQ(ValidUtf8("\xC0\xAF"), bad + bad);                      // overlong
  EXPECT_EQ(ValidUtf8("\xE0\x80\xAF"), bad + bad + bad);            // overlong
  EXPECT_EQ(ValidUtf8("\xED\xA0\x80"), bad + bad + bad);            // surrogate
  EXPECT_EQ(ValidUtf8("\xF4\x90\x80\x80"), bad + bad + bad + bad);  // above U+10FFFF
  EXPECT_EQ(CodePoints("\xE2\x82\xAC"
                       "a"),
            2);
}

TEST(TextEscape, EscapesForJsonAndXml) {
  const std::string hostile = std::string("a\"b\\c\n\x01<&>'") + '\0';
  EXPECT_EQ(JsonString(hostile), "\"a\\\"b\\\\c\\n\\u0001<&>'\\u0000\"");
  EXPECT_EQ(XmlText("<a href=\"x\">&'"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;");
  EXPECT_EQ(XmlText("\x01"), "\xEF\xBF\xBD");
}

TEST(TextEscape, NumbersReadBackExactly) {
  for (const double x : {0.1, 1.0 / 3, 1e-300, 5e-324, 123456789.123, -0.0, 2.5e17}) {
    EXPECT_EQ(std::strtod(JsonNumber(x).c_str(), nullptr), x);
  }
  EXPECT_EQ(JsonNumber(0.1), "0.1");
  EXPECT_EQ(JsonNumber(std::numeric_limits<double>::infinity()), "null");
}

}  // namespace
}  // namespace evenkeel
