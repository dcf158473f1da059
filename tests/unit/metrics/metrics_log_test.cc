#include "runtime/metrics/metrics_log.h"

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <limits>
#include <nlohmann/json.hpp>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/metrics/temp_folder.h"

namespace evenkeel {
namespace {

using ::testing::ElementsAre;

constexpr double kInf = std::numeric_limits<double>::infinity();

MetricsLog OpenLog(const std::string& path) {
  auto log = MetricsLog::Open(path);
  EXPECT_TRUE(log.ok()) << log.status();
  return *std::move(log);
}

std::vector<double> StepsOf(const std::string& path, MetricEvent event) {
  const auto history = ReadMetrics(path, event);
  EXPECT_TRUE(history.ok()) << history.status();
  std::vector<double> steps;
  for (const MetricsRow& row : history->rows) steps.push_back(static_cast<double>(row.step));
  return steps;
}

TEST(MetricsLine, IsTheDocumentedFormat) {
  EXPECT_EQ(
      MetricsLine(MetricEvent::kTrain, 12, 1755900000.125,
                  {{"loss", 2.25}, {"lr", 1e-5}, {"tokens", int64_t{4096}}, {"note", "a\"b"}}),
      "{\"v\":1,\"t\":1755900000.125,\"event\":\"train\",\"step\":12,\"loss\":2.25,"
      "\"lr\":1e-05,\"tokens\":4096,\"note\":\"a\\\"b\"}\n");
  EXPECT_EQ(MetricsLine(MetricEvent::kFault, 0, 1, {{"loss", NAN}, {"x", 1.0}, {"norm", -kInf}}),
            "{\"v\":1,\"t\":1.000,\"event\":\"fault\",\"step\":0,\"loss\":null,\"x\":1,"
            "\"norm\":null,\"nonfinite\":[\"loss\",\"norm\"]}\n");
}

TEST(MetricsLine, IsJsonWhateverTheNames) {
  std::string every_byte;
  for (int c = 0; c < 256; ++c) every_byte += static_cast<char>(c);
  const std::string line =
      MetricsLine(MetricEvent::kEval, 1, 0, {{every_byte, every_byte}, {"{\"}", NAN}});
  EXPECT_EQ(line.find('\n'), line.size() - 1);
  const auto json = nlohmann::json::parse(line);
  EXPECT_EQ(json["nonfinite"][0], "{\"}");
  EXPECT_EQ(json.size(), 7u);
}

TEST(MetricsLineDeathTest, RefusesReservedNames) {
  EXPECT_DEATH(MetricsLine(MetricEvent::kTrain, 1, 0, {{"step", 1.0}}), "step");
}

TEST(MetricsLog, ReadsBackWhatItWrote) {
  const TempFolder folder;
  const std::string path = folder.File("metrics.jsonl");
  {
    MetricsLog log = OpenLog(path);
    log.Write(MetricEvent::kTrain, 1, {{"loss", 1.0 / 3}, {"tokens", int64_t{1} << 60}});
    log.Write(MetricEvent::kEval, 1, {{"loss", 9.0}});
    log.Write(MetricEvent::kTrain, 2, {{"loss", NAN}, {"note", "x"}});
    // Visible before the log is closed: each line is handed to the system.
    EXPECT_THAT(StepsOf(path, MetricEvent::kTrain), ElementsAre(1, 2));
  }
  const auto history = ReadMetrics(path, MetricEvent::kTrain);
  ASSERT_TRUE(history.ok()) << history.status();
  EXPECT_EQ(history->skipped_lines, 0);
  EXPECT_GT(history->rows[0].unix_seconds, 1.6e9);
  EXPECT_EQ(std::get<int64_t>(history->rows[0].values[1].value), int64_t{1} << 60);
  EXPECT_EQ(std::get<std::string>(history->rows[1].values[1].value), "x");
  const MetricSeries loss = SeriesOf(*history, "loss");
  EXPECT_THAT(loss.steps, ElementsAre(1, 2));
  EXPECT_EQ(loss.values[0], 1.0 / 3);
  EXPECT_TRUE(std::isnan(loss.values[1]));
  EXPECT_TRUE(SeriesOf(*history, "note").steps.empty());
  EXPECT_TRUE(SeriesOf(*history, "absent").steps.empty());
}

TEST(MetricsLog, ResumeMarkerSupersedesLostSteps) {
  const TempFolder folder;
  const std::string path = folder.File("metrics.jsonl");
  MetricsLog log = OpenLog(path);
  const auto train = [&](int64_t from, int64_t to) {
    for (int64_t s = from; s <= to; ++s) log.Write(MetricEvent::kTrain, s, {{"loss", 0.5}});
  };
  train(1, 5);
  log.Write(MetricEvent::kEval, 5, {});
  log.Write(MetricEvent::kResume, 3, {});
  train(4, 6);
  EXPECT_THAT(StepsOf(path, MetricEvent::kTrain), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(StepsOf(path, MetricEvent::kEval), ElementsAre());
  EXPECT_THAT(StepsOf(path, MetricEvent::kResume), ElementsAre(3));
  log.Write(MetricEvent::kResume, 0, {});  // back to the start, past the first marker too
  train(1, 2);
  EXPECT_THAT(StepsOf(path, MetricEvent::kTrain), ElementsAre(1, 2));
  EXPECT_THAT(StepsOf(path, MetricEvent::kResume), ElementsAre(0));
}

TEST(MetricsLog, StartingAnewSupersedesStepZeroToo) {
  const TempFolder folder;
  const std::string path = folder.path() + "/metrics.jsonl";
  MetricsLog log = OpenLog(path);
  for (int process = 0; process < 2; ++process) {
    log.Write(MetricEvent::kResume, 0, {});
    log.Write(MetricEvent::kEval, 0, {{"loss", 5.5}});
  }
  EXPECT_THAT(StepsOf(path, MetricEvent::kEval), ElementsAre(0));
}

TEST(MetricsLog, SurvivesAHalfWrittenLine) {
  const TempFolder folder;
  const std::string path = folder.File("metrics.jsonl");
  const std::string first = MetricsLine(MetricEvent::kTrain, 1, 0, {{"loss", 2.0}});
  const std::string second = MetricsLine(MetricEvent::kTrain, 2, 0, {{"loss", 1.0}});
  // Cut after every byte of the second line: all of it but the newline is still a line.
  for (size_t cut = 1; cut < second.size(); ++cut) {
    WriteAll(path, first + second.substr(0, cut));
    const bool whole = cut == second.size() - 1;
    auto history = ReadMetrics(path, MetricEvent::kTrain);
    ASSERT_TRUE(history.ok());
    EXPECT_EQ(history->rows.size(), whole ? 2u : 1u) << cut;
    EXPECT_EQ(history->skipped_lines, whole ? 0 : 1) << cut;
    OpenLog(path).Write(MetricEvent::kTrain, 3, {});
    history = ReadMetrics(path, MetricEvent::kTrain);
    EXPECT_EQ(history->rows.back().step, 3) << cut;
    EXPECT_EQ(history->rows.size(), whole ? 3u : 2u) << cut;
  }
}

TEST(ReadMetrics, SkipsWhatIsNotALineOfOurs) {
  const TempFolder folder;
  const std::string path = folder.File("metrics.jsonl");
  WriteAll(
      path,
      "\n[1]\n{}\nnull\n{\"v\":2,\"event\":\"train\",\"step\":1}\n{\"v\":1,\"event\":\"train\"}\n"
      "{\"v\":1,\"event\":\"train\",\"step\":1.5}\n{\"v\":1,\"event\":7,\"step\":1}\n" +
          std::string(100000, '[') + "\n{\"v\":1,\"event\":\"train\",\"step\":1e999}\n" +
          std::string("\0\xFF\n", 3) +
          "{\"v\":1,\"event\":\"train\",\"step\":4,\"list\":[1],\"flag\":true}\n");
  const auto history = ReadMetrics(path, MetricEvent::kTrain);
  ASSERT_TRUE(history.ok());
  ASSERT_EQ(history->rows.size(), 1u);
  EXPECT_EQ(history->rows[0].step, 4);
  EXPECT_TRUE(history->rows[0].values.empty());
  EXPECT_EQ(history->skipped_lines, 10);
}

TEST(ReadMetrics, ReportsAMissingFile) {
  EXPECT_EQ(ReadMetrics("/nonexistent/metrics.jsonl", MetricEvent::kTrain).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_FALSE(ReadMetrics("/", MetricEvent::kTrain).ok());
  EXPECT_FALSE(MetricsLog::Open("/nonexistent/metrics.jsonl").ok());
}

TEST(MetricsLog, WarnsOnceWhenTheDiskIsFull) {
  MetricsLog log = OpenLog("/dev/full");
  ::testing::internal::CaptureStderr();
  for (int s = 1; s <= 3; ++s) log.Write(MetricEvent::kTrain, s, {{"loss", 1.0}});
  const std::string warnings = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(warnings, ::testing::HasSubstr("/dev/full: No space left on device"));
  EXPECT_EQ(std::count(warnings.begin(), warnings.end(), '\n'), 1) << warnings;
}

// A file size limit stops writes in the middle of a record, as a full disk may.
TEST(MetricsLog, KeepsWholeLinesOnlyAndGoesOnWhenThereIsRoomAgain) {
  const TempFolder folder;
  const std::string path = folder.File("metrics.jsonl");
  MetricsLog log = OpenLog(path);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit old_limit;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  struct rlimit limit = old_limit;
  limit.rlim_cur = 333;
  ::testing::internal::CaptureStderr();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  for (int s = 1; s <= 20; ++s) log.Write(MetricEvent::kTrain, s, {{"loss", 1.0}});
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const std::string warnings = ::testing::internal::GetCapturedStderr();
  std::signal(SIGXFSZ, old_handler);
  log.Write(MetricEvent::kTrain, 21, {{"loss", 1.0}});
  EXPECT_EQ(std::count(warnings.begin(), warnings.end(), '\n'), 1) << warnings;
  const auto history = ReadMetrics(path, MetricEvent::kTrain);
  ASSERT_TRUE(history.ok());
  EXPECT_EQ(history->skipped_lines, 0);
  EXPECT_GT(history->rows.size(), 2u);
  EXPECT_LT(history->rows.size(), 20u);
  EXPECT_EQ(history->rows.back().step, 21);
}

}  // namespace
}  // namespace evenkeel
