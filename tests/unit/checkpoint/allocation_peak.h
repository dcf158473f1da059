// Counts what `new` hands out in this test program, to see that hostile input cannot make us
// allocate.
#pragma once

#include <cstdint>

namespace evenkeel {

// Starts a measurement on the calling thread.
void ResetAllocationPeak();

// Returns the most bytes that were in use at once since then, beyond those in use at that time.
int64_t AllocationPeak();

}  // namespace evenkeel
