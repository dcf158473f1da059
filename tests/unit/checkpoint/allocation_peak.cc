#include "tests/unit/checkpoint/allocation_peak.h"

#include <malloc.h>

#include <algorithm>
#include <cstdlib>
#include <new>

namespace {

thread_local int64_t in_use = 0;
thread_local int64_t peak = 0;

void* Allocate(std::size_t bytes) {
  void* memory = std::malloc(bytes > 0 ? bytes : 1);
  if (memory == nullptr) std::abort();
  in_use += static_cast<int64_t>(malloc_usable_size(memory));
  peak = std::max(peak, in_use);
  return memory;
}

void Free(void* memory) {
  if (memory == nullptr) return;
  in_use -= static_cast<int64_t>(malloc_usable_size(memory));
  std::free(memory);
}

}  // namespace

void* operator new(std::size_t bytes) {
  return Allocate(bytes);
}
void* operator new[](std::size_t bytes) {
  return Allocate(bytes);
}
void operator delete(void* memory) noexcept {
  Free(memory);
}
void operator delete[](void* memory) noexcept {
  Free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  Free(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  Free(memory);
}

namespace evenkeel {

void ResetAllocationPeak() {
  in_use = peak = 0;
}

int64_t AllocationPeak() {
  return peak;
}

}  // namespace evenkeel
