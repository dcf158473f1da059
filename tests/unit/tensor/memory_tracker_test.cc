#include "runtime/tensor/memory_tracker.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "runtime/base/thread_pool.h"

namespace evenkeel {
namespace {

TEST(MemoryTracker, PeaksOfPurposesNeedNotCoincide) {
  MemoryTracker tracker;
  tracker.Add(MemoryPurpose::kActivations, 100);
  tracker.Add(MemoryPurpose::kActivations, -80);
  tracker.Add(MemoryPurpose::kWorkspace, 70);
  EXPECT_EQ(tracker.current(MemoryPurpose::kActivations), 20);
  EXPECT_EQ(tracker.peak(MemoryPurpose::kActivations), 100);
  EXPECT_EQ(tracker.peak(MemoryPurpose::kWorkspace), 70);
  EXPECT_EQ(tracker.current_total(), 90);
  EXPECT_EQ(tracker.peak_total(), 100);
  EXPECT_EQ(tracker.current(MemoryPurpose::kWeights), 0);
}

TEST(MemoryTracker, ReportsWhatWasEverInUse) {
  MemoryTracker tracker;
  tracker.Add(MemoryPurpose::kWeights, 3 << 20);
  tracker.Add(MemoryPurpose::kCache, 512);
  tracker.Add(MemoryPurpose::kCache, -512);
  EXPECT_EQ(tracker.Report(),
            "memory                   now         peak\n"
            "weights              3.0 MiB      3.0 MiB\n"
            "cache                    0 B        512 B\n"
            "total                3.0 MiB      3.0 MiB\n");
}

TEST(MemoryTracker, NamesEveryPurpose) {
  MemoryTracker tracker;
  for (int i = 0; i < static_cast<int>(MemoryPurpose::kCount); ++i) {
    EXPECT_STRNE(NameOf(static_cast<MemoryPurpose>(i)), "?");
  }
}

// Every thread holds at most 3 units of a purpose of its own and of one that all share. The peaks
// can be no more than all together, and no less than one alone; nothing is left at the end.
TEST(MemoryTracker, CountsFromSeveralThreads) {
  constexpr int kThreads = 4, kRounds = 20000;
  MemoryTracker tracker;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&tracker, t] {
      const auto own = static_cast<MemoryPurpose>(t);
      for (int i = 0; i < kRounds; ++i) {
        tracker.Add(MemoryPurpose::kCommunication, 1);
        tracker.Add(own, 1);
        tracker.Add(MemoryPurpose::kCommunication, 2);
        tracker.Add(MemoryPurpose::kCommunication, -3);
        tracker.Add(own, -1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(tracker.current_total(), 0);
  EXPECT_EQ(tracker.current(MemoryPurpose::kCommunication), 0);
  EXPECT_GE(tracker.peak(MemoryPurpose::kCommunication), 3);
  EXPECT_LE(tracker.peak(MemoryPurpose::kCommunication), 3 * kThreads);
  for (int t = 0; t < kThreads; ++t) EXPECT_EQ(tracker.peak(static_cast<MemoryPurpose>(t)), 1);
  EXPECT_GE(tracker.peak_total(), 4);
  EXPECT_LE(tracker.peak_total(), 4 * kThreads);
}

// All threads add at once and never give back: the peak must be the sum, however the raises
// interleave. Many short rounds, since only the last raises of a round can be lost.
TEST(MemoryTracker, LosesNoRaise) {
  constexpr int kThreads = 3, kRounds = 20000, kAdds = 3;
  ThreadPool pool(kThreads);
  for (int round = 0; round < kRounds; ++round) {
    MemoryTracker tracker;
    pool.RunOnAll([&](int) {
      for (int i = 0; i < kAdds; ++i) tracker.Add(MemoryPurpose::kCache, 1);
    });
    ASSERT_EQ(tracker.peak(MemoryPurpose::kCache), kThreads * kAdds);
    ASSERT_EQ(tracker.peak_total(), kThreads * kAdds);
  }
}

TEST(FormatBytes, ChoosesTheUnit) {
  const struct {
    int64_t bytes;
    const char* text;
  } cases[] = {
      {0, "0 B"},
      {1, "1 B"},
      {1023, "1023 B"},
      {1024, "1.0 KiB"},
      {1536, "1.5 KiB"},
      {(1 << 20) - 1, "1024.0 KiB"},
      {1 << 20, "1.0 MiB"},
      {int64_t{3} << 29, "1.50 GiB"},
      {int64_t{1} << 40, "1024.00 GiB"},
      {-5, "-5 B"},
  };
  for (const auto& c : cases) EXPECT_EQ(FormatBytes(c.bytes), c.text);
}

}  // namespace
}  // namespace evenkeel
