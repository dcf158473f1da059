#include "runtime/base/thread_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <numeric>
#include <utility>

#include "runtime/base/philox.h"

namespace evenkeel {
namespace {

using Range = std::pair<int64_t, int64_t>;

// The ranges that ParallelFor calls, ascending.
std::vector<Range> RangesOf(ThreadPool& pool, int64_t n, int64_t grain) {
  std::mutex mutex;
  std::vector<Range> ranges;
  pool.ParallelFor(n, grain, [&](int64_t begin, int64_t end) {
    const std::lock_guard<std::mutex> lock(mutex);
    ranges.emplace_back(begin, end);
  });
  std::sort(ranges.begin(), ranges.end());
  return ranges;
}

// Keeps a core busy for about `rounds` steps; the result is used so that nothing is optimised away.
uint64_t Work(int64_t rounds) {
  uint64_t x = 1;
  for (int64_t i = 0; i < rounds; ++i) x = x * 6364136223846793005u + 1442695040888963407u;
  return x;
}

TEST(ThreadPool, RunOnAllCallsEachPartOnce) {
  for (int threads = 1; threads <= 8; ++threads) {
    ThreadPool pool(threads);
    ASSERT_EQ(pool.num_threads(), threads);
    for (int repeat = 0; repeat < 200; ++repeat) {
      // Plain ints, each written by one part alone: a part that runs twice, or a result that is
      // not there when the call returns, is a race that a thread sanitizer sees too.
      std::vector<int> calls(static_cast<size_t>(threads), 0);
      pool.RunOnAll([&](int part) { ++calls[static_cast<size_t>(part)]; });
      ASSERT_EQ(calls, std::vector<int>(static_cast<size_t>(threads), 1));
    }
  }
}

TEST(ThreadPool, ManyTinyLoops) {
  for (int threads = 1; threads <= 8; ++threads) {
    ThreadPool pool(threads);
    int64_t sum = 0, expected = 0;
    for (int64_t loop = 0; loop < 3000; ++loop) {
      const int64_t n = loop % 11;
      // Bodies are temporaries on this stack: a late worker that calls an old one is seen here.
      std::vector<int64_t> values(static_cast<size_t>(n), 0);
      pool.ParallelFor(n, 1, [&, loop](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) values[static_cast<size_t>(i)] += loop + i;
      });
      sum += std::accumulate(values.begin(), values.end(), int64_t{0});
      expected += n * loop + n * (n - 1) / 2;
    }
    EXPECT_EQ(sum, expected) << threads;
  }
}

TEST(ThreadPool, KindsOfLoopsFollowEachOther) {
  ThreadPool pool(3);
  for (int64_t loop = 0; loop < 1000; ++loop) {
    std::vector<int> a(3, 0), b(7, 0), c(5, 0);
    pool.RunOnAll([&](int part) { ++a[static_cast<size_t>(part)]; });
    pool.ParallelForEach(7, [&](int64_t i) { b[static_cast<size_t>(i)] += a[0] + a[1] + a[2]; });
    pool.ParallelFor(5, 2, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) c[static_cast<size_t>(i)] = b[static_cast<size_t>(i)];
    });
    ASSERT_EQ(c, std::vector<int>(5, 3));
  }
}

TEST(ThreadPool, SleepingWorkersWakeUp) {
  ThreadPool pool(4);
  for (int repeat = 0; repeat < 10; ++repeat) {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));  // far longer than they spin
    std::vector<int> calls(64, 0);
    pool.ParallelForEach(64, [&](int64_t i) { ++calls[static_cast<size_t>(i)]; });
    ASSERT_EQ(calls, std::vector<int>(64, 1));
  }
}

// Workers do take part, even out of their sleep: two parts that wait for each other can only finish
// on two threads. (Bodies must not do this; it shows here that a second thread comes, however
// late.)
TEST(ThreadPool, WorkersTakePart) {
  ThreadPool pool(2);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  std::atomic<int> arrived{0};
  std::vector<std::thread::id> ids(2);
  pool.RunOnAll([&](int part) {
    ids[static_cast<size_t>(part)] = std::this_thread::get_id();
    arrived.fetch_add(1);
    const auto start = std::chrono::steady_clock::now();
    while (arrived.load() < 2 &&
           std::chrono::steady_clock::now() - start < std::chrono::seconds(10)) {
      std::this_thread::yield();
    }
  });
  EXPECT_EQ(arrived.load(), 2);
  EXPECT_NE(ids[0], ids[1]);
}

TEST(ThreadPool, ParallelForCutsAtTheGrain) {
  for (int threads = 1; threads <= 8; ++threads) {
    ThreadPool pool(threads);
    for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{2}, int64_t{7}, int64_t{8}, int64_t{9},
                            int64_t{31}, int64_t{97}, int64_t{1000}, int64_t{1} << 40}) {
      for (const int64_t grain : {1, 2, 3, 8, 64, 5000}) {
        const std::vector<Range> ranges = RangesOf(pool, n, grain);
        ASSERT_LE(ranges.size(), static_cast<size_t>(threads));
        int64_t next = 0, shortest = n, longest = 0;
        for (const auto& [begin, end] : ranges) {
          ASSERT_EQ(begin, next);
          ASSERT_LT(begin, end);
          ASSERT_EQ(begin % grain, 0);
          next = end;
          const int64_t blocks = (end - begin + grain - 1) / grain;
          shortest = std::min(shortest, blocks);
          longest = std::max(longest, blocks);
        }
        ASSERT_EQ(next, n);
        if (n > 0) {
          ASSERT_LE(longest - shortest, 1) << n << " by " << grain;
        }
        const int64_t blocks = (n + grain - 1) / grain;
        ASSERT_EQ(static_cast<int64_t>(ranges.size()), std::min<int64_t>(threads, blocks));
      }
    }
  }
}

TEST(ThreadPool, NothingToDoCallsNothing) {
  ThreadPool pool(3);
  int calls = 0;
  for (const int64_t n : {0, -1, -100}) {
    pool.ParallelFor(n, 1, [&](int64_t, int64_t) { ++calls; });
    pool.ParallelForEach(n, [&](int64_t) { ++calls; });
  }
  EXPECT_EQ(calls, 0);
}

TEST(ThreadPool, ParallelForEachCallsEachIndexOnce) {
  for (int threads = 1; threads <= 8; ++threads) {
    ThreadPool pool(threads);
    for (const int64_t n : {1, 2, 3, 7, 8, 9, 100, 2003}) {
      std::vector<int> calls(static_cast<size_t>(n), 0);
      pool.ParallelForEach(n, [&](int64_t i) { ++calls[static_cast<size_t>(i)]; });
      ASSERT_EQ(calls, std::vector<int>(static_cast<size_t>(n), 1)) << threads << " " << n;
    }
  }
}

// Bodies from nothing to a few hundred microseconds: whoever is late finds the loop gone, and the
// caller waits for whoever is still at work.
TEST(ThreadPool, BodiesOfVeryDifferentLengths) {
  const Philox random(3, 1);
  uint64_t drawn = 0;
  for (int threads = 2; threads <= 8; threads += 2) {
    ThreadPool pool(threads);
    for (int loop = 0; loop < 100; ++loop) {
      std::vector<int64_t> rounds(static_cast<size_t>(threads));
      for (int64_t& r : rounds) {
        const double u = random.Uniform(drawn++);
        r = u < 0.7 ? 0 : static_cast<int64_t>(u * u * 100000);
      }
      std::vector<uint64_t> results(rounds.size(), 0);
      pool.RunOnAll([&](int part) {
        const auto p = static_cast<size_t>(part);
        results[p] = Work(rounds[p]);
      });
      for (size_t p = 0; p < rounds.size(); ++p) ASSERT_EQ(results[p], Work(rounds[p]));
    }
  }
}

TEST(ThreadPool, GoesRightAfterALoop) {
  for (int repeat = 0; repeat < 200; ++repeat) {
    const int threads = 1 + repeat % 8;
    std::vector<int> calls(static_cast<size_t>(threads), 0);
    {
      ThreadPool pool(threads);
      if (repeat % 3 != 0) pool.RunOnAll([&](int part) { ++calls[static_cast<size_t>(part)]; });
    }
    ASSERT_EQ(calls, std::vector<int>(static_cast<size_t>(threads), repeat % 3 != 0 ? 1 : 0));
  }
}

TEST(ThreadPool, SeveralPoolsDoNotMeet) {
  std::vector<std::thread> callers;
  std::vector<int64_t> sums(3, 0);
  for (size_t c = 0; c < sums.size(); ++c) {
    callers.emplace_back([&sums, c] {
      ThreadPool pool(2);
      for (int loop = 0; loop < 300; ++loop) {
        std::atomic<int64_t> sum{0};
        pool.ParallelForEach(10, [&](int64_t i) { sum.fetch_add(i); });
        sums[c] += sum.load();
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sums, std::vector<int64_t>(3, 300 * 45));
}

TEST(ThreadPoolDeathTest, NeedsAThread) {
  EXPECT_DEATH(ThreadPool(0), "num_threads >= 1");
}

}  // namespace
}  // namespace evenkeel
