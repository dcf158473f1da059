#include "runtime/base/thread_pool.h"

#include <algorithm>

#include "runtime/base/check.h"

namespace evenkeel {
namespace {

// About 20 microseconds: longer than the gap between two loops of a step, shorter than what another
// process on the same core would notice.
constexpr int kSpins = 800;
constexpr uint64_t kPartsMask = 0xFFFFFFFFu;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

uint64_t LoopOf(uint64_t ticket) {
  return ticket >> 32;
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  EK_CHECK(num_threads >= 1) << num_threads;
  for (int t = 1; t < num_threads; ++t) workers_.emplace_back([this] { WorkerLoop(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::WorkOffParts() {
  for (uint64_t ticket = ticket_.load(std::memory_order_acquire); (ticket & kPartsMask) != 0;) {
    if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
    // body_ stays that of this loop until our part is finished.
    (*body_)(static_cast<int>((ticket & kPartsMask) - 1));
    unfinished_.fetch_sub(1, std::memory_order_acq_rel);
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

void ThreadPool::Run(int num_parts, const std::function<void(int)>& body) {
  if (workers_.empty() || num_parts == 1) {
    for (int part = 0; part < num_parts; ++part) body(part);
    return;
  }
  unfinished_.store(num_parts, std::memory_order_relaxed);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    body_ = &body;
    const uint64_t loop = LoopOf(ticket_.load(std::memory_order_relaxed)) + 1;
    ticket_.store(loop << 32 | static_cast<uint64_t>(num_parts), std::memory_order_release);
  }
  wake_.notify_all();
  WorkOffParts();
  for (int spins = 0; unfinished_.load(std::memory_order_acquire) != 0; ++spins) {
    // A worker may have lost its core to another process: give ours up instead of burning it.
    if (spins < kSpins) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::WorkerLoop() {
  uint64_t seen = 0;
  const auto idle = [&] {
    return LoopOf(ticket_.load(std::memory_order_acquire)) == seen && !stop_.load();
  };
  for (;;) {
    for (int spins = 0; spins < kSpins && idle(); ++spins) Pause();
    if (idle()) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return !idle(); });
    }
    if (stop_.load()) return;
    seen = LoopOf(ticket_.load(std::memory_order_acquire));
    WorkOffParts();
  }
}

void ThreadPool::RunOnAll(const std::function<void(int)>& body) {
  Run(num_threads(), body);
}

void ThreadPool::ParallelFor(int64_t n, int64_t grain,
                             const std::function<void(int64_t, int64_t)>& body) {
  if (n <= 0) return;
  const int64_t blocks = (n + grain - 1) / grain;
  const int64_t parts = std::min<int64_t>(num_threads(), blocks);
  if (parts == 1) return body(0, n);
  Run(static_cast<int>(parts), [&](int part) {
    const int64_t begin = blocks * part / parts * grain;
    const int64_t end = std::min(n, blocks * (part + 1) / parts * grain);
    if (begin < end) body(begin, end);
  });
}

void ThreadPool::ParallelForEach(int64_t n, const std::function<void(int64_t)>& body) {
  if (n <= 0) return;
  const int parts = static_cast<int>(std::min<int64_t>(num_threads(), n));
  if (parts == 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  std::atomic<int64_t> next{0};
  Run(parts, [&](int) {
    for (int64_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) body(i);
  });
}

}  // namespace evenkeel
