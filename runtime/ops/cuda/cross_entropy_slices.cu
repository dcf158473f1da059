// A block takes a row, each thread every blockDim-th unit of it, several loads in flight at once:
// the rows are read once by the statistics' kernel, and read and written once by the gradient's.
#include "runtime/ops/cuda/cross_entropy_slices_cuda.h"
#include "runtime/ops/cuda/row_pieces.cuh"
#include "runtime/ops/cuda/softmax_rows.cuh"

namespace evenkeel {
namespace {

using namespace row_pieces;    // NOLINT(google-build-using-namespace)
using namespace softmax_rows;  // NOLINT(google-build-using-namespace)

constexpr int kThreads = 256;
constexpr int kAhead = 4;  // units of a thread in flight

// Units of kWidth elements, then what is left of the row an element at a time.
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    SliceStatisticsKernel(const CrossEntropySliceStatisticsParams p) {
  using Io = Unit<kWidth>;
  __shared__ float2 scratch[kThreads / 32];
  const int64_t t = blockIdx.x;
  const Bf16* row = static_cast<const Bf16*>(p.logits) + t * p.stride;
  float target_logit = 0.0f;
  if (threadIdx.x == 0) {
    const int64_t place = p.targets[t] - p.vocab_begin;
    if (p.targets[t] >= 0 && place >= 0 && place < p.vocab) {
      target_logit = __bfloat162float(row[place]);
    }
  }
  const int64_t units = p.vocab / kWidth;
  Running running;
  for (int64_t first = threadIdx.x; first < units; first += kAhead * kThreads) {
    typename Io::Packed v[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t at = first + i * kThreads;
      if (at < units) v[i] = Io::Load(row + at * kWidth);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i * kThreads >= units) break;
      float z[kWidth];
      Io::Open(v[i], z);
      running.Add(z);
    }
  }
  for (int64_t i = units * kWidth + threadIdx.x; i < p.vocab; i += kThreads) {
    const float z[1] = {__bfloat162float(row[i])};
    running.Add(z);
  }
  running = MergeBlock(running, scratch);
  if (threadIdx.x == 0) {
    float* statistics = p.statistics + 3 * t;
    statistics[0] = running.max;
    statistics[1] = running.sum;
    statistics[2] = target_logit;
  }
}

// What a row's gradient and loss are made of, over the whole vocabulary.
struct RowSoftmax {
  float max;
  float sum;
  float target_logit;
};

// Token t's statistics, combined in the order of the slices; everything NaN where softmax has no
// value: a NaN, +inf, or nothing but -inf. Sums of products are fused here by hand: every instance
// of the kernel must give the same bits, since ranks may run different ones.
__device__ __forceinline__ RowSoftmax Combined(const CrossEntropySliceGradientParams& p,
                                               int64_t t) {
  RowSoftmax row = {-INFINITY, 0.0f, 0.0f};
  for (int64_t slice = 0; slice < p.slices; ++slice) {
    row.max = fmaxf(row.max, p.all[3 * (slice * p.tokens + t)]);
  }
  const float offset = Running::Offset(row.max);
  for (int64_t slice = 0; slice < p.slices; ++slice) {
    const float* statistics = p.all + 3 * (slice * p.tokens + t);
    row.sum = fmaf(statistics[1], ExpOf(statistics[0], offset), row.sum);
    row.target_logit += statistics[2];
  }
  if (row.max == -INFINITY || !(row.max < INFINITY) || row.sum != row.sum) {
    const float nan = __int_as_float(0x7fffffff);
    return {nan, nan, nan};
  }
  return row;
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    SliceGradientKernel(const CrossEntropySliceGradientParams p) {
  using Io = Unit<kWidth>;
  const int64_t t = blockIdx.x;
  Bf16* row = static_cast<Bf16*>(p.logits) + t * p.stride;
  const int64_t units = p.vocab / kWidth, target = p.targets[t];
  if (target < 0) {
    if (threadIdx.x == 0) p.losses[t] = 0.0f;
    const float zeros[kWidth] = {};
    for (int64_t at = threadIdx.x; at < units; at += kThreads) Io::Store(row + at * kWidth, zeros);
    for (int64_t i = units * kWidth + threadIdx.x; i < p.vocab; i += kThreads) {
      row[i] = __float2bfloat16(0.0f);
    }
    return;
  }
  const RowSoftmax softmax = Combined(p, t);
  if (threadIdx.x == 0) {
    p.losses[t] = fmaf(log2f(softmax.sum), kLn2, softmax.max - softmax.target_logit);
  }
  const float factor = p.scale / softmax.sum;
  const int64_t place = target - p.vocab_begin;
  const auto gradient = [&](float z, int64_t i) {
    const float e = ExpOf(z, softmax.max) * factor;
    return i == place ? e - p.scale : e;
  };
  for (int64_t first = threadIdx.x; first < units; first += kAhead * kThreads) {
    typename Io::Packed v[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t at = first + i * kThreads;
      if (at < units) v[i] = Io::Load(row + at * kWidth);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t at = first + i * kThreads;
      if (at >= units) break;
      float z[kWidth];
      Io::Open(v[i], z);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) z[j] = gradient(z[j], at * kWidth + j);
      Io::Store(row + at * kWidth, z);
    }
  }
  for (int64_t i = units * kWidth + threadIdx.x; i < p.vocab; i += kThreads) {
    row[i] = __float2bfloat16(gradient(__bfloat162float(row[i]), i));
  }
}

bool Fits(int64_t tokens, int64_t vocab) {
  return 0 <= tokens && tokens <= int64_t{1} << 30 && 0 <= vocab && vocab <= int64_t{1} << 40;
}

// Rows begin at whole pieces; the last piece of a row may be partial.
bool StartsAtPieces(const void* logits, int64_t stride) {
  return HasPieces(logits, stride, kPiece);
}

}  // namespace

cudaError_t LaunchCrossEntropySliceStatistics(const CrossEntropySliceStatisticsParams& p,
                                              cudaStream_t stream) {
  if (!Fits(p.tokens, p.vocab)) return cudaErrorInvalidValue;
  if (p.tokens == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(p.tokens);
  if (StartsAtPieces(p.logits, p.stride)) {
    SliceStatisticsKernel<kPiece><<<blocks, kThreads, 0, stream>>>(p);
  } else {
    SliceStatisticsKernel<1><<<blocks, kThreads, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

cudaError_t LaunchCrossEntropySliceGradient(const CrossEntropySliceGradientParams& p,
                                            cudaStream_t stream) {
  if (!Fits(p.tokens, p.vocab) || p.slices < 1) return cudaErrorInvalidValue;
  if (p.tokens == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(p.tokens);
  if (StartsAtPieces(p.logits, p.stride)) {
    SliceGradientKernel<kPiece><<<blocks, kThreads, 0, stream>>>(p);
  } else {
    SliceGradientKernel<1><<<blocks, kThreads, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

}  // namespace evenkeel
