// Scalars and near matches, below the level of documents.
#include "runtime/config/config_value.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "runtime/base/philox.h"
#include "runtime/config/nearest_key.h"

namespace evenkeel {
namespace {

TEST(ConfigValue, Integers) {
  int64_t value = 77;
  for (const auto& [text, expected] : std::initializer_list<std::pair<const char*, int64_t>>{
           {"0", 0},
           {"-0", 0},
           {"+5", 5},
           {"-12", -12},
           {"9223372036854775807", std::numeric_limits<int64_t>::max()},
           {"-9223372036854775808", std::numeric_limits<int64_t>::min()}}) {
    EXPECT_EQ(ParseIntValue(text, false, &value), "") << text;
    EXPECT_EQ(value, expected);
  }
  value = 77;
  for (const char* text : {"", "-", "+", "--1", "+-1", "1 2", "1,000", "00", "-01", "0b1", "0o7",
                           "1:30", "9223372036854775808", "1e", "e5", "1.", "_", "_1_", "true"}) {
    EXPECT_NE(ParseIntValue(text, false, &value), "") << text;
    EXPECT_EQ(value, 77) << text;
  }
}

TEST(ConfigValue, Floats) {
  double value = 77;
  for (const auto& [text, expected] : std::initializer_list<std::pair<const char*, double>>{
           {"0", 0},
           {"0.5", 0.5},
           {".5", 0.5},
           {"5.", 5},
           {"+1e3", 1000},
           {"-2.5E-1", -0.25},
           {"1e+06", 1e6},
           {"0e5", 0},
           {"12345678901234567890", 12345678901234567890.0}}) {
    EXPECT_EQ(ParseFloatValue(text, false, &value), "") << text;
    EXPECT_EQ(value, expected) << text;
  }
  value = 77;
  for (const char* text : {"", ".", "-", "e5", "1e", "1e+", "1.2.3", "0x1p3", "1f", "00.5", "inf",
                           ".Inf", "nan", "NaN", "-.INF", "1e400", "1 ", "1e5.5", "infinity"}) {
    EXPECT_NE(ParseFloatValue(text, false, &value), "") << text;
    EXPECT_EQ(value, 77) << text;
  }
  EXPECT_NE(ParseFloatValue("0.5", true, &value), "");
}

TEST(ConfigValue, FloatsRoundTrip) {
  const Philox random(1, 2);
  for (uint64_t i = 0; i < 20000; ++i) {
    const uint64_t bits = random.Bits(i) & ~(uint64_t{1} << 62);  // never inf or NaN
    double value = 0, read = 1;
    std::memcpy(&value, &bits, sizeof(value));
    ASSERT_EQ(ParseFloatValue(FormatFloatValue(value), false, &read), "");
    EXPECT_EQ(std::memcmp(&read, &value, sizeof(value)), 0) << value;
  }
}

TEST(NearestKey, EditDistance) {
  EXPECT_EQ(EditDistance("", ""), 0);
  EXPECT_EQ(EditDistance("abc", ""), 3);
  EXPECT_EQ(EditDistance("lr", "LR"), 0);
  EXPECT_EQ(EditDistance("num-heads", "num_heads"), 0);
  EXPECT_EQ(EditDistance("hiden", "hidden"), 1);
  EXPECT_EQ(EditDistance("setps", "steps"), 1);  // a swap of neighbours is one mistake
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3);
}

TEST(NearestKey, NothingNearGivesNothing) {
  EXPECT_EQ(NearestWord("batch", {"lr", "steps"}), "");
  EXPECT_EQ(NearestWord("", {"lr"}), "");
  EXPECT_EQ(NearestWord("ab", {"lr", "cd"}), "");
  EXPECT_EQ(NearestWord(std::string(1000, 'a'), {std::string(1000, 'a')}), "");
  EXPECT_EQ(SuggestKey("x", {"a.b"}), "");
}

}  // namespace
}  // namespace evenkeel
