#include "runtime/base/thread_pool.h"

#include <algorithm>

#include "runtime/base/check.h"

namespace evenkeel {
namespace {

// About 20 microseconds of spinning: longer than the gap between two loops of a step, shorter than
// what a sleeping neighbour on the same core would notice.
constexpr int kSpins = 4000;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  EK_CHECK(num_threads >= 1) << num_threads;
  for (int t = 1; t < num_threads; ++t) workers_.emplace_back([this, t] { WorkerLoop(t); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true);
    generation_.fetch_add(1);
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::RunOnAll(const std::function<void(int)>& body) {
  if (workers_.empty()) return body(0);
  running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    body_ = &body;
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  body(0);
  for (int spins = 0; running_.load(std::memory_order_acquire) != 0; ++spins) {
    // A worker may have lost its core to another process: give ours up instead of burning it.
    if (spins < kSpins) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::WorkerLoop(int thread) {
  uint64_t seen = 0;
  for (;;) {
    for (int spins = 0; spins < kSpins && generation_.load(std::memory_order_acquire) == seen;
         ++spins) {
      Pause();
    }
    if (generation_.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stop_.load()) return;
    (*body_)(thread);
    running_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

void ThreadPool::ParallelFor(int64_t n, int64_t grain,
                             const std::function<void(int64_t, int64_t)>& body) {
  if (n <= 0) return;
  const int64_t blocks = (n + grain - 1) / grain;
  const int64_t parts = std::min<int64_t>(num_threads(), blocks);
  if (parts == 1) return body(0, n);
  RunOnAll([&](int thread) {
    if (thread >= parts) return;
    const int64_t begin = blocks * thread / parts * grain;
    const int64_t end = std::min(n, blocks * (thread + 1) / parts * grain);
    if (begin < end) body(begin, end);
  });
}

void ThreadPool::ParallelForEach(int64_t n, const std::function<void(int64_t)>& body) {
  if (n <= 0) return;
  if (n == 1 || workers_.empty()) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  std::atomic<int64_t> next{0};
  RunOnAll([&](int) {
    for (int64_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) body(i);
  });
}

}  // namespace evenkeel
