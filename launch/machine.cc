#include "launch/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "runtime/ops/elementwise.h"
#include "runtime/ops/matmul.h"

namespace evenkeel {

int ThreadsPerRank(int64_t configured, int local_ranks) {
  if (configured > 0) return static_cast<int>(configured);
  // A launcher may have bound this rank to cores of its own, or to a socket that several ranks
  // share.
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  const int bound = sched_getaffinity(0, sizeof(cpus), &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
  const int share = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)) / std::max(1, local_ranks);
  return std::max(1, std::min(bound, share));
}

int64_t PhysicalMemoryBytes() {
  return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
}

double MeasurePeakFlops(const OpContext& context) {
  constexpr int64_t kSize = 768;
  const ArenaScope scope(context.arena);
  const auto allocate = [&] {
    return context.arena.AllocateZero(context.dtype, {kSize, kSize}, MemoryPurpose::kWorkspace);
  };
  TensorView a = allocate(), b = allocate(), c = allocate();
  double best = 0;
  for (int repeat = 0; repeat < 4; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    MatMul(context, a, Transpose::kNo, b, Transpose::kYes, 0, c);
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, 2.0 * kSize * kSize * kSize / seconds);
  }
  return best;
}

}  // namespace evenkeel
