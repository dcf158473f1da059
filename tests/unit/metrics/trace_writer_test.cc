#include "runtime/metrics/trace_writer.h"

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/unit/metrics/temp_folder.h"

namespace evenkeel {
namespace {

using nlohmann::json;

TEST(TraceWriter, WritesTheDocumentedEvents) {
  const TempFolder folder;
  const std::string path = folder.File("trace.json");
  {
    auto trace = TraceWriter::Create(path, 3, 1000);
    ASSERT_TRUE(trace.ok()) << trace.status();
    EXPECT_EQ((*trace)->AddLane("compute"), 0);
    EXPECT_EQ((*trace)->AddLane("hostile \"lane\"\n\xFF"), 1);
    (*trace)->Complete(1, "pre \\ attention", 1012.5, 2.25,
                       {{"tokens", int64_t{128}}, {"share", 0.5}, {"bad", NAN}, {"who", "\"me\""}});
  }
  const json events = json::parse(ReadAll(path));
  ASSERT_EQ(events.size(), 7u);
  EXPECT_EQ(events[0], json::parse(R"({"name":"process_name","ph":"M","pid":3,"tid":0,
                                      "args":{"name":"rank 3"}})"));
  EXPECT_EQ(events[2], json::parse(R"({"name":"thread_name","ph":"M","pid":3,"tid":0,
                                      "args":{"name":"compute"}})"));
  EXPECT_EQ(events[4]["args"]["name"], "hostile \"lane\"\n\xEF\xBF\xBD");
  EXPECT_EQ(events[6], json::parse(R"({"name":"pre \\ attention","ph":"X","pid":3,"tid":1,
      "ts":12.5,"dur":2.25,"args":{"tokens":128,"share":0.5,"bad":null,"who":"\"me\""}})"));
}

TEST(TraceWriter, LacksOnlyItsBracketWhenKilled) {
  const TempFolder folder;
  const std::string path = folder.File("trace.json");
  auto trace = TraceWriter::Create(path, 0, 0);
  ASSERT_TRUE(trace.ok());
  const int lane = (*trace)->AddLane("lane");
  // Enough to pass the internal buffer, so that the file has been written to without Flush().
  for (int i = 0; i < 3000; ++i) (*trace)->Complete(lane, "work", i, 1);
  const std::string unflushed = ReadAll(path);
  EXPECT_GT(unflushed.size(), 65536u);
  EXPECT_TRUE(json::accept(unflushed + "]"));
  EXPECT_FALSE(json::accept(unflushed));
  (*trace)->Flush();
  EXPECT_EQ(json::parse(ReadAll(path) + "]").size(), 4u + 3000u);
  trace->reset();
  EXPECT_EQ(json::parse(ReadAll(path)).size(), 4u + 3000u);
}

TEST(TraceWriter, RecordsFromSeveralThreads) {
  const TempFolder folder;
  const std::string path = folder.File("trace.json");
  constexpr int kThreads = 4, kEvents = 500;
  {
    auto trace = TraceWriter::Create(path, 0, TraceWriter::NowUs());
    ASSERT_TRUE(trace.ok());
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&] {
        const int lane = (*trace)->AddLane("thread");
        for (int i = 0; i < kEvents; ++i) TraceSpan span(trace->get(), lane, "span");
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  std::map<int, int> spans;
  for (const json& event : json::parse(ReadAll(path))) {
    if (event["ph"] != "X") continue;
    ++spans[event["tid"].get<int>()];
    EXPECT_GE(event["ts"].get<double>(), 0);
    EXPECT_GE(event["dur"].get<double>(), 0);
  }
  ASSERT_EQ(spans.size(), static_cast<size_t>(kThreads));
  for (const auto& [lane, count] : spans) EXPECT_EQ(count, kEvents) << lane;
}

TEST(TraceSpan, NeedsNoWriter) {
  TraceSpan span(nullptr, 0, "nothing");
}

TEST(TraceWriter, ReportsAMissingFolder) {
  EXPECT_FALSE(TraceWriter::Create("/nonexistent/trace.json", 0, 0).ok());
}

}  // namespace
}  // namespace evenkeel
