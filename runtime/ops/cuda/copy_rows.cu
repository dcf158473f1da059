// A warp copies some rows of one range, about kPartBytes: a part. Ranges have few parts as a rule,
// and every range gets the same number of warps, which take its parts in turn. The few ranges that
// are much longer than the others have a warp for each part: they travel as an argument of the
// kernel, where a warp finds its range by bisection. So one launch serves any mix, and nothing but
// the ranges is uploaded.
#include <algorithm>

#include "runtime/ops/cuda/copy_rows_cuda.h"

namespace evenkeel {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPartBytes = 8192;
constexpr int kMaxLong = 64;
constexpr int64_t kMinLongParts = 8;
constexpr int64_t kManyWarps = 16384;  // enough for every multiprocessor, twice over

// A range with a warp for each part: warps [begin, begin + its parts) of those of long ranges.
struct LongRange {
  RowRange rows;
  int64_t begin;
};

struct CopyRowsPlan {
  int64_t part_rows;
  int64_t range_warps;   // of each range that is not long
  int64_t range_blocks;  // for those; the blocks behind them are for long ranges
  int64_t max_parts;     // of a range that is not long
  int64_t long_warps;
  int num_long;
  LongRange long_ranges[kMaxLong];
};

int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Copies `count` rows; a lane takes every 32nd unit of them, kAhead loads in flight.
template <typename T>
__device__ __forceinline__ void CopyPart(const CopyRowsParams& p, int64_t from, int64_t to,
                                         int64_t count) {
  constexpr int kAhead = 8, kSize = static_cast<int>(sizeof(T));
  const char* x = static_cast<const char*>(p.x) + from * p.x_stride;
  char* y = static_cast<char*>(p.y) + to * p.y_stride;
  // Rows without gaps are one row.
  const bool dense = p.x_stride == p.row_bytes && p.y_stride == p.row_bytes;
  const int64_t width = dense ? count * p.row_bytes : p.row_bytes, rows = dense ? 1 : count;
  const int64_t units = width / kSize * rows;
  const bool one_row = rows == 1;
  const auto row_units = static_cast<uint32_t>(p.row_bytes / kSize);
  for (int64_t first = threadIdx.x % 32; first < units; first += kAhead * 32) {
    T v[kAhead];
    int64_t to_offset[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t at = first + i * 32;
      if (at >= units) continue;
      int64_t row = 0, unit = at;
      if (!one_row) {
        row = static_cast<uint32_t>(at) / row_units;
        unit = static_cast<uint32_t>(at) % row_units;
      }
      v[i] = *reinterpret_cast<const T*>(x + row * p.x_stride + unit * kSize);
      to_offset[i] = row * p.y_stride + unit * kSize;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i * 32 < units) *reinterpret_cast<T*>(y + to_offset[i]) = v[i];
    }
  }
}

// The rows of part `part` of a range.
template <typename T>
__device__ __forceinline__ void CopyPartOf(const CopyRowsParams& p, const RowRange& range,
                                           int64_t part_rows, int64_t part) {
  const int64_t skipped = part * part_rows, left = range.count - skipped;
  CopyPart<T>(p, range.from + skipped, range.to + skipped, left < part_rows ? left : part_rows);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    CopyRowsKernel(const CopyRowsParams p, const __grid_constant__ CopyRowsPlan plan) {
  constexpr int kWarps = kThreads / 32;
  const int64_t warp_in_block = threadIdx.x / 32;
  if (blockIdx.x < plan.range_blocks) {
    const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + warp_in_block;
    const int64_t index = warp / plan.range_warps;
    if (index >= p.num_ranges) return;
    const RowRange range = p.ranges[index];
    const int64_t parts = (range.count + plan.part_rows - 1) / plan.part_rows;
    if (parts > plan.max_parts) return;  // a long one
    for (int64_t part = warp % plan.range_warps; part < parts; part += plan.range_warps) {
      CopyPartOf<T>(p, range, plan.part_rows, part);
    }
    return;
  }
  const int64_t warp = (blockIdx.x - plan.range_blocks) * kWarps + warp_in_block;
  if (warp >= plan.long_warps) return;
  int low = 0, high = plan.num_long;  // the range is in [low, high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (plan.long_ranges[middle].begin <= warp) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const LongRange& range = plan.long_ranges[low];
  CopyPartOf<T>(p, range.rows, plan.part_rows, warp - range.begin);
}

// Fewer than kMaxLong ranges have more than 1 / kMaxLong of all parts; what the others have is
// little enough for range_warps warps not to keep the rest of the GPU waiting.
CopyRowsPlan PlanOf(const CopyRowsParams& p) {
  CopyRowsPlan plan = {};
  plan.part_rows = std::max<int64_t>(1, kPartBytes / p.row_bytes);
  const auto parts_of = [&](const RowRange& range) { return CeilDiv(range.count, plan.part_rows); };
  int64_t total = 0;
  for (int64_t i = 0; i < p.num_ranges; ++i) total += parts_of(p.host_ranges[i]);
  plan.max_parts = std::max(kMinLongParts, total / kMaxLong);
  int64_t most = 0;  // parts of a range that is not long
  bool has_short = false;
  for (int64_t i = 0; i < p.num_ranges; ++i) {
    const int64_t parts = parts_of(p.host_ranges[i]);
    if (parts > plan.max_parts) {
      plan.long_ranges[plan.num_long++] = {p.host_ranges[i], plan.long_warps};
      plan.long_warps += parts;
    } else {
      most = std::max(most, parts);
      has_short |= parts > 0;
    }
  }
  if (has_short) {
    plan.range_warps = std::max<int64_t>(1, std::min(most, kManyWarps / p.num_ranges));
    plan.range_blocks = CeilDiv(p.num_ranges * plan.range_warps, kThreads / 32);
  }
  return plan;
}

template <typename T>
void Run(const CopyRowsParams& p, const CopyRowsPlan& plan, int64_t blocks, cudaStream_t stream) {
  CopyRowsKernel<T><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p, plan);
}

// Whether everything about the rows is a multiple of `bytes`.
bool Divides(int64_t bytes, const CopyRowsParams& p) {
  const auto all =
      static_cast<int64_t>(reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.y)) |
      p.row_bytes | p.x_stride | p.y_stride;
  return all % bytes == 0;
}

}  // namespace

cudaError_t LaunchCopyRows(const CopyRowsParams& p, cudaStream_t stream) {
  if (p.num_ranges < 0 || p.row_bytes < 0) return cudaErrorInvalidValue;
  if (p.num_ranges == 0 || p.row_bytes == 0) return cudaSuccess;
  const CopyRowsPlan plan = PlanOf(p);
  const int64_t blocks = plan.range_blocks + CeilDiv(plan.long_warps, kThreads / 32);
  if (blocks == 0) return cudaSuccess;
  if (blocks > int64_t{1} << 30) return cudaErrorInvalidValue;
  if (Divides(16, p)) {
    Run<uint4>(p, plan, blocks, stream);
  } else if (Divides(4, p)) {
    Run<uint32_t>(p, plan, blocks, stream);
  } else if (Divides(2, p)) {
    Run<uint16_t>(p, plan, blocks, stream);
  } else {
    return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

}  // namespace evenkeel
