#include "runtime/metrics/human_format.h"

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

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

}  // namespace
}  // namespace evenkeel
