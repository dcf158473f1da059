// What the host makes and ops read: token ids, targets, positions, ranges of rows. On a GPU it is
// read from a copy in device memory, made once a batch and used by every layer.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Borrows the host's array; `device` is null on the CPU, and where no copy was made yet: an op on a
// GPU then makes one for itself. Converts from what the host has, so that CPU code passes a vector.
template <typename T>
struct MirroredArray {
  absl::Span<const T> host;
  const T* device = nullptr;

  MirroredArray() = default;
  // NOLINTNEXTLINE(google-explicit-constructor)
  MirroredArray(absl::Span<const T> values) : host(values) {}
  // NOLINTNEXTLINE(google-explicit-constructor)
  MirroredArray(const std::vector<T>& values) : host(values) {}

  int64_t size() const { return static_cast<int64_t>(host.size()); }
  T operator[](int64_t i) const { return host[static_cast<size_t>(i)]; }

  // Elements [begin, end).
  MirroredArray Slice(int64_t begin, int64_t end) const {
    MirroredArray part(host.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
    if (device != nullptr) part.device = device + begin;
    return part;
  }
};

using Indices = MirroredArray<int32_t>;
using Positions = MirroredArray<int64_t>;

// Returns the array with its copy on the context's GPU, in the context's arena; on the CPU, the
// array as it is. For the arrays above and those of copy_rows.h and sum_rows.h.
template <typename T>
MirroredArray<T> Mirror(const OpContext& context, MirroredArray<T> array);

}  // namespace evenkeel
