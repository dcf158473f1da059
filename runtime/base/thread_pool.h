// A fixed team of threads for data-parallel loops inside one rank.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace evenkeel {

// The calling thread takes part, so a pool of one thread starts none. Parts of a loop are claimed,
// not assigned: where other processes hold the cores, the caller does the work of workers that do
// not get to run and never waits for them to wake up. Workers spin for a moment before they sleep,
// since the loops of a training step follow each other within microseconds. Not re-entrant: a body
// must not start another loop on the same pool. One caller at a time.
class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(p) once for each p in [0, num_threads()) and waits for all. Calls run side by side
  // where threads are free; a thread may make several of them, so they must not wait for each
  // other.
  void RunOnAll(const std::function<void(int part)>& body);

  // Cuts [0, n) into at most num_threads() contiguous ranges of near-equal size whose bounds are
  // multiples of `grain` (but for the end), and calls body(begin, end) on each. The cut depends on
  // the number of threads, so a body must not let a range's bounds change what it computes.
  void ParallelFor(int64_t n, int64_t grain,
                   const std::function<void(int64_t begin, int64_t end)>& body);

  // Calls body(i) for every i in [0, n); idle threads take the next index (dynamic balance).
  void ParallelForEach(int64_t n, const std::function<void(int64_t index)>& body);

 private:
  void Run(int num_parts, const std::function<void(int)>& body);
  void WorkerLoop();
  // Does parts of the present loop until none is left to claim.
  void WorkOffParts();

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  const std::function<void(int)>* body_ = nullptr;
  // Number of the loop in the upper half, parts nobody has claimed in the lower. Claiming is one
  // compare-and-swap, so a late worker either gets a part of the loop it saw or nothing at all.
  std::atomic<uint64_t> ticket_{0};
  std::atomic<int> unfinished_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace evenkeel
