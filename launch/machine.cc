#include "launch/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "runtime/ops/gpu.h"
#include "runtime/ops/matmul.h"

namespace evenkeel {
namespace {

// Fills x with numbers between -1 and 1.
void FillWithNoise(const OpContext& context, const TensorView& x) {
  const int64_t bytes = x.num_elements() * SizeOf(x.dtype);
  std::vector<char> host(static_cast<size_t>(bytes));
  uint64_t state = 88172645463325252ULL;  // xorshift64
  for (int64_t i = 0; i < x.num_elements(); ++i) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    const double value = static_cast<double>(state >> 11) * 0x1p-52 - 1;
    if (x.dtype == DType::kF64) {
      std::memcpy(host.data() + 8 * i, &value, 8);
      continue;
    }
    const float single = static_cast<float>(value);
    if (x.dtype == DType::kF32) {
      std::memcpy(host.data() + 4 * i, &single, 4);
    } else {  // the upper half of a float32 is a bf16
      std::memcpy(host.data() + 2 * i, reinterpret_cast<const char*>(&single) + 2, 2);
    }
  }
  (void)CopyFromHost(context, TensorView(host.data(), x.dtype, x.shape), x);
}

}  // namespace

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
