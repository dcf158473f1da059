#include "runtime/metrics/text_escape.h"

#include <cstdlib>
#include <limits>
#include <string>

#include "gtest/gtest.h"

namespace evenkeel {
namespace {

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
