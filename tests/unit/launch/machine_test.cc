#include "launch/machine.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <thread>

namespace evenkeel {
namespace {

TEST(ThreadsPerRank, ConfiguredWins) {
  EXPECT_EQ(ThreadsPerRank(7, 1), 7);
  EXPECT_EQ(ThreadsPerRank(7, 100), 7);
}

TEST(ThreadsPerRank, SharesTheHostsCores) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  const int cores = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)), bound = CPU_COUNT(&allowed);
  for (const int ranks : {1, 2, 3, 4, 1000}) {
    EXPECT_EQ(ThreadsPerRank(0, ranks), std::max(1, std::min(bound, cores / ranks))) << ranks;
  }
  EXPECT_EQ(ThreadsPerRank(0, 100000), 1) << "more ranks than cores";
  EXPECT_EQ(ThreadsPerRank(0, 0), std::min(bound, cores)) << "an unknown number of ranks";
}

// A launcher that gave this rank one core has already shared them out.
TEST(ThreadsPerRank, KeepsToTheCoresItIsBoundTo) {
  int threads = 0;
  std::thread bound([&threads] {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu) {
      if (CPU_ISSET(cpu, &allowed)) CPU_SET(cpu, &one);
    }
    ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
    threads = ThreadsPerRank(0, 1);
  });
  bound.join();
  EXPECT_EQ(threads, 1);
}

TEST(Machine, HasMemoryAndSpeed) {
  EXPECT_GT(PhysicalMemoryBytes(), int64_t{64} << 20);
  MemoryTracker tracker;
  ThreadPool pool(1);
  Arena arena = *Arena::Create(int64_t{1} << 30, tracker);
  const double flops = MeasurePeakFlops({pool, arena, DType::kF32});
  EXPECT_GT(flops, 1e7);
  EXPECT_LT(flops, 1e14);
  EXPECT_EQ(arena.bytes_in_use(), 0);
}

}  // namespace
}  // namespace evenkeel
