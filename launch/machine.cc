#include "launch/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>

#include "launch/noise.h"
#include "runtime/ops/gpu.h"
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

std::string CpuName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "CPU";
}

double MeasurePeakFlops(const OpContext& context) {
  // A GPU needs more to be busy. Random numbers: zeros cost it less power, so it would run faster.
  const int64_t size = context.cuda == nullptr ? 768 : 8192;
  const int repeats = context.cuda == nullptr ? 1 : 8;
  const ArenaScope scope(context.arena);
  const auto allocate = [&] {
    return context.arena.Allocate(context.dtype, {size, size}, MemoryPurpose::kWorkspace);
  };
  TensorView a = allocate(), b = allocate(), c = allocate();
  FillWithNoise(context, a);
  FillWithNoise(context, b);
  double best = 0;
  for (int repeat = 0; repeat < 4; ++repeat) {
    if (!WaitForOps(context).ok()) return 0;
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < repeats; ++i) MatMul(context, a, Transpose::kNo, b, Transpose::kYes, 0, c);
    if (!WaitForOps(context).ok()) return 0;
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const double n = static_cast<double>(size);
    best = std::max(best, 2.0 * n * n * n * repeats / seconds);
  }
  return best;
}

}  // namespace evenkeel
