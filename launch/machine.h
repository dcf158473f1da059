// What a rank has to compute with.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/ops/op_context.h"

namespace evenkeel {

// Threads for each of `local_ranks` ranks of one host: the cores this process may use, shared.
// `configured` > 0 wins.
int ThreadsPerRank(int64_t configured, int local_ranks);

// Bytes of memory of this host: the bound on an arena's address space.
int64_t PhysicalMemoryBytes();

// The processor as the kernel names it, or "CPU" where it does not.
std::string CpuName();

// FLOP/s of a large matrix product on this rank, all its threads at work: the honest peak for mfu.
double MeasurePeakFlops(const OpContext& context);

}  // namespace evenkeel
