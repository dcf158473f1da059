// A segment is cut into parts of kPartUnits units of 16 bytes of x's rows, regardless of where rows
// end, and a warp makes a part: its lanes keep the sums of their units in registers while they walk
// the terms, so x is read once, y written once. As in copy_rows.cu, every segment gets the same
// number of warps, which take its parts in turn, and the few much longer than the others, which
// travel as an argument of the kernel, have a warp for each part.
#include <algorithm>

#include "runtime/ops/cuda/row_pieces.cuh"
#include "runtime/ops/cuda/sum_rows_cuda.h"

namespace evenkeel {
namespace {

using namespace row_pieces;  // NOLINT(google-build-using-namespace)

constexpr int kThreads = 256;
constexpr int kAhead = 4;  // units a lane has, and loads in flight for each term
constexpr int kPartUnits = 32 * kAhead;
constexpr int kMaxLong = 64;
constexpr int64_t kMinLongParts = 8;
constexpr int64_t kManyWarps = 16384;  // enough for every multiprocessor, twice over

// A segment with a warp for each part: warps [begin, begin + its parts) of those of long segments.
struct LongSegment {
  RowSegment segment;
  int64_t begin;
};

struct SumRowsPlan {
  int64_t segment_warps;   // of each segment that is not long
  int64_t segment_blocks;  // for those; the blocks behind them are for long segments
  int64_t max_parts;       // of a segment that is not long
  int64_t long_warps;
  int num_long;
  LongSegment long_segments[kMaxLong];
};

__device__ __forceinline__ float ToFloat(Bf16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ float ToFloat(float x) {
  return x;
}
__device__ __forceinline__ void Round(float x, Bf16* y) {
  *y = __float2bfloat16(x);
}
__device__ __forceinline__ void Round(float x, float* y) {
  *y = x;
}

// What a lane loads at once: 16 bytes, or one element where rows are odd.
template <typename X, int kUnit>
struct Loaded;
template <>
struct Loaded<Bf16, 8> {
  uint4 v;
  __device__ __forceinline__ void Load(const Bf16* p) { v = LoadPiece(p); }
  __device__ __forceinline__ void AddTo(float (&sum)[8]) const {
    float x[8];
    Unpack(v, x);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum[j] += x[j];
  }
};
template <>
struct Loaded<float, 4> {
  float4 v;
  __device__ __forceinline__ void Load(const float* p) { v = *reinterpret_cast<const float4*>(p); }
  __device__ __forceinline__ void AddTo(float (&sum)[4]) const {
    sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
  }
};
template <typename X>
struct Loaded<X, 1> {
  X v;
  __device__ __forceinline__ void Load(const X* p) { v = *p; }
  __device__ __forceinline__ void AddTo(float (&sum)[1]) const { sum[0] += ToFloat(v); }
};

__device__ __forceinline__ void StoreUnit(Bf16* y, const float (&sum)[8]) {
  StorePiece(y, Pack(sum));
}
__device__ __forceinline__ void StoreUnit(Bf16* y, const float (&sum)[4]) {
  *reinterpret_cast<uint2*>(y) = make_uint2(PackPair(sum[0], sum[1]), PackPair(sum[2], sum[3]));
}
__device__ __forceinline__ void StoreUnit(float* y, const float (&sum)[8]) {
  StoreFloats(y, sum);
}
__device__ __forceinline__ void StoreUnit(float* y, const float (&sum)[4]) {
  *reinterpret_cast<float4*>(y) = make_float4(sum[0], sum[1], sum[2], sum[3]);
}
template <typename Y>
__device__ __forceinline__ void StoreUnit(Y* y, const float (&sum)[1]) {
  Round(sum[0], y);
}

// Units [part * kPartUnits, + kPartUnits) of a segment's rows, one behind the other.
template <typename X, typename Y, int kUnit>
__device__ __forceinline__ void SumPart(const SumRowsParams& p, const RowSegment& segment,
                                        int64_t part) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  // One 64-bit division a part, the rest in 32 bits.
  const int64_t row_units = p.columns / kUnit, first = part * kPartUnits;
  const int64_t first_row = first / row_units;
  const auto first_unit = static_cast<uint32_t>(first - first_row * row_units);
  int64_t row[kAhead];
  int64_t column[kAhead];
  float sum[kAhead][kUnit];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const uint32_t at = first_unit + static_cast<uint32_t>(i * 32 + lane);
    row[i] = first_row + at / static_cast<uint32_t>(row_units);
    column[i] = int64_t{at % static_cast<uint32_t>(row_units)} * kUnit;
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      // -0 + x is x to the bit, also where x is -0.
      sum[i][j] = segment.num_terms == 0 ? 0.0f : -0.0f;
    }
  }
  const X* x = static_cast<const X*>(p.x);
  for (int64_t begin = 0; begin < segment.num_terms; begin += 32) {
    const int64_t left = segment.num_terms - begin;
    const int count = left < 32 ? static_cast<int>(left) : 32;
    const int64_t mine = lane < count ? p.terms[segment.first_term + begin + lane] : 0;
#pragma unroll 2
    for (int t = 0; t < count; ++t) {
      const X* term = x + __shfl_sync(0xffffffffu, mine, t) * p.x_stride;
      Loaded<X, kUnit> v[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (row[i] < segment.count) v[i].Load(term + row[i] * p.x_stride + column[i]);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (row[i] < segment.count) v[i].AddTo(sum[i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (row[i] >= segment.count) continue;
    StoreUnit(static_cast<Y*>(p.y) + (segment.to + row[i]) * p.y_stride + column[i], sum[i]);
  }
}

template <typename X, typename Y, int kUnit>
__global__ void __launch_bounds__(kThreads)
    SumRowsKernel(const SumRowsParams p, const __grid_constant__ SumRowsPlan plan) {
  constexpr int kWarps = kThreads / 32;
  const int64_t warp_in_block = threadIdx.x / 32;
  if (blockIdx.x < plan.segment_blocks) {
    const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + warp_in_block;
    const int64_t index = warp / plan.segment_warps;
    if (index >= p.num_segments) return;
    const RowSegment segment = p.segments[index];
    const int64_t units = segment.count * (p.columns / kUnit);
    const int64_t parts = (units + kPartUnits - 1) / kPartUnits;
    if (parts > plan.max_parts) return;  // a long one
    for (int64_t part = warp % plan.segment_warps; part < parts; part += plan.segment_warps) {
      SumPart<X, Y, kUnit>(p, segment, part);
    }
    return;
  }
  const int64_t warp = (blockIdx.x - plan.segment_blocks) * kWarps + warp_in_block;
  if (warp >= plan.long_warps) return;
  int low = 0, high = plan.num_long;  // the segment is in [low, high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (plan.long_segments[middle].begin <= warp) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const LongSegment& found = plan.long_segments[low];
  SumPart<X, Y, kUnit>(p, found.segment, warp - found.begin);
}

// Fewer than kMaxLong segments have more than 1 / kMaxLong of all parts; what the others have is
// little enough for segment_warps warps not to keep the rest of the GPU waiting.
SumRowsPlan PlanOf(const SumRowsParams& p, int64_t unit) {
  SumRowsPlan plan = {};
  const auto parts_of = [&](const RowSegment& segment) {
    return CeilDiv(segment.count * (p.columns / unit), kPartUnits);
  };
  int64_t total = 0;
  for (int64_t i = 0; i < p.num_segments; ++i) total += parts_of(p.host_segments[i]);
  plan.max_parts = std::max(kMinLongParts, total / kMaxLong);
  int64_t most = 0;  // parts of a segment that is not long
  for (int64_t i = 0; i < p.num_segments; ++i) {
    const int64_t parts = parts_of(p.host_segments[i]);
    if (parts > plan.max_parts) {
      plan.long_segments[plan.num_long++] = {p.host_segments[i], plan.long_warps};
      plan.long_warps += parts;
    } else {
      most = std::max(most, parts);
    }
  }
  if (most > 0) {
    plan.segment_warps = std::max<int64_t>(1, std::min(most, kManyWarps / p.num_segments));
    plan.segment_blocks = CeilDiv(p.num_segments * plan.segment_warps, kThreads / 32);
  }
  return plan;
}

template <typename X, typename Y, int kUnit>
cudaError_t Run(const SumRowsParams& p, cudaStream_t stream) {
  if (p.columns / kUnit > int64_t{1} << 31) return cudaErrorInvalidValue;
  const SumRowsPlan plan = PlanOf(p, kUnit);
  const int64_t blocks = plan.segment_blocks + CeilDiv(plan.long_warps, kThreads / 32);
  if (blocks == 0) return cudaSuccess;
  if (blocks > int64_t{1} << 30) return cudaErrorInvalidValue;
  SumRowsKernel<X, Y, kUnit><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p, plan);
  return cudaGetLastError();
}

// Whether rows of `element` bytes an element begin at 16 bytes.
bool Aligned(const void* p, int64_t stride, int64_t element) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride * element % 16 == 0;
}

template <typename X, typename Y>
cudaError_t Launch(const SumRowsParams& p, cudaStream_t stream) {
  constexpr int kUnit = 16 / sizeof(X);
  if (p.columns % kUnit == 0 && Aligned(p.x, p.x_stride, sizeof(X)) &&
      Aligned(p.y, p.y_stride, sizeof(Y))) {
    return Run<X, Y, kUnit>(p, stream);
  }
  return Run<X, Y, 1>(p, stream);
}

}  // namespace

cudaError_t LaunchSumRows(const SumRowsParams& p, cudaStream_t stream) {
  if (p.num_segments < 0 || p.columns < 0) return cudaErrorInvalidValue;
  if (p.num_segments == 0 || p.columns == 0) return cudaSuccess;
  if (p.float_x)
    return p.float_y ? Launch<float, float>(p, stream) : Launch<float, Bf16>(p, stream);
  return p.float_y ? Launch<Bf16, float>(p, stream) : Launch<Bf16, Bf16>(p, stream);
}

}  // namespace evenkeel
