// Blocks stay and take row after row. A thread owns every blockDim-th piece of 16 bytes of its
// rows:
//   pass 1: running maximum and sum of exponentials, from the row in shared memory;
//   pass 2: gradient to device memory; and as soon as a piece is done, the copy of the same piece
//   of
//           the block's next row starts into its place, so that reading and writing overlap.
// What does not fit in shared memory is read in pass 1 and again, mostly from the second-level
// cache, in pass 2. One read and one write of the logits in device memory.
#include <algorithm>
#include <cmath>

#include "runtime/ops/cuda/cross_entropy_cuda.h"
#include "runtime/ops/cuda/row_pieces.cuh"
#include "runtime/ops/cuda/softmax_rows.cuh"

namespace evenkeel {
namespace {

using namespace row_pieces;    // NOLINT(google-build-using-namespace)
using namespace softmax_rows;  // NOLINT(google-build-using-namespace)

// 16 bytes of logits.
template <typename T>
struct Pack16;
template <>
struct Pack16<Bf16> {
  static constexpr int kSize = 8;
  static __device__ __forceinline__ void Open(uint4 v, float (&z)[8]) { Unpack(v, z); }
  static __device__ __forceinline__ uint4 Close(const float (&z)[8]) { return Pack(z); }
  static __device__ __forceinline__ float ToFloat(Bf16 z) { return __bfloat162float(z); }
  static __device__ __forceinline__ Bf16 FromFloat(float z) { return __float2bfloat16(z); }
};
template <>
struct Pack16<float> {
  static constexpr int kSize = 4;
  static __device__ __forceinline__ void Open(uint4 v, float (&z)[4]) {
    z[0] = __uint_as_float(v.x), z[1] = __uint_as_float(v.y);
    z[2] = __uint_as_float(v.z), z[3] = __uint_as_float(v.w);
  }
  static __device__ __forceinline__ uint4 Close(const float (&z)[4]) {
    return make_uint4(__float_as_uint(z[0]), __float_as_uint(z[1]), __float_as_uint(z[2]),
                      __float_as_uint(z[3]));
  }
  static __device__ __forceinline__ float ToFloat(float z) { return z; }
  static __device__ __forceinline__ float FromFloat(float z) { return z; }
};

// Converts the row's sum to the factor of exp(z - max) and to the loss.
struct RowResult {
  float offset;  // max
  float factor;  // scale / sum
  float loss;
};

__device__ __forceinline__ RowResult ResultOf(const Running& r, float target_logit, float scale) {
  if (r.max == -INFINITY || !(r.max < INFINITY) || r.sum != r.sum) {
    const float nan = __int_as_float(0x7fffffff);
    return {nan, nan, nan};
  }
  return {Running::Offset(r.max), scale / r.sum, (r.max - target_logit) + log2f(r.sum) * kLn2};
}

template <typename T>
__device__ __forceinline__ void ClearRow(T* row, int64_t vocab) {
  for (int64_t i = threadIdx.x; i < vocab; i += blockDim.x) row[i] = Pack16<T>::FromFloat(0.0f);
}

__device__ __forceinline__ void CopyAsync(uint4* shared, const uint4* global) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;");
}
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

constexpr int kQuarters = 4;  // groups of copies of a row

// `kept` pieces of a row fit in shared memory.
template <typename T>
__global__ void __launch_bounds__(1024) CrossEntropyKernel(const CrossEntropyParams p, int kept) {
  using P = Pack16<T>;
  constexpr int kSize = P::kSize, kAhead = 4;
  extern __shared__ uint4 cache[];
  __shared__ float2 scratch[2][32];
  const int count = static_cast<int>(p.vocab / kSize), stride = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  const int in_cache = kept < count ? kept : count, over = count - in_cache;
  // Pieces of this thread in a quarter, and where quarter q of the cached part begins and ends.
  const int quarter = (in_cache + stride * kQuarters - 1) / (stride * kQuarters);
  const auto begin_of = [&](int q) { return thread + q * quarter * stride; };
  const auto end_of = [&](int q) {
    const int end = (q + 1) * quarter * stride;
    return end < in_cache ? end : in_cache;
  };
  const auto row_of = [&](int64_t t) { return static_cast<T*>(p.logits) + t * p.stride; };

  if (blockIdx.x < p.tokens) {
    const auto* pieces = reinterpret_cast<const uint4*>(row_of(blockIdx.x));
#pragma unroll
    for (int q = 0; q < kQuarters; ++q) {
      for (int at = begin_of(q); at < end_of(q); at += stride) CopyAsync(cache + at, pieces + at);
      CommitCopies();
    }
  }
  int parity = 0;
  int64_t target = blockIdx.x < p.tokens ? p.targets[blockIdx.x] : 0;
  for (int64_t t = blockIdx.x; t < p.tokens; t += gridDim.x, parity ^= 1) {
    T* row = row_of(t);
    auto* pieces = reinterpret_cast<uint4*>(row);
    const int64_t next = t + gridDim.x;
    const int64_t next_target = next < p.tokens ? p.targets[next] : 0;
    const bool ignored = target < 0;
    const float target_logit = thread == 0 && !ignored ? P::ToFloat(row[target]) : 0.0f;
    Running running;
    const auto add_quarter = [&](int q) {
      for (int at = begin_of(q); at < end_of(q); at += stride) {
        float z[kSize];
        P::Open(cache[at], z);
        running.Add(z);
      }
    };
    WaitForCopies<3>();
    add_quarter(0);
    WaitForCopies<2>();
    add_quarter(1);
    WaitForCopies<1>();
    add_quarter(2);
    WaitForCopies<0>();
    add_quarter(3);
    for (int first = thread; first < over; first += stride * kAhead) {
      uint4 v[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int at = first + i * stride;
        if (at < over) v[i] = pieces[in_cache + at];
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (first + i * stride >= over) break;
        float z[kSize];
        P::Open(v[i], z);
        running.Add(z);
      }
    }
    running = MergeBlock(running, scratch[parity]);  // also: thread 0 has read row[target]
    RowResult result = ResultOf(running, target_logit, p.scale);
    if (thread == 0) p.losses[t] = ignored ? 0.0f : result.loss;

    const int target_piece = ignored ? -1 : static_cast<int>(target / kSize);
    const int target_place = static_cast<int>(target % kSize);
    const auto gradient = [&](uint4 v, int at) {
      float z[kSize];
      P::Open(v, z);
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        z[j] = ExpOf(z[j], result.offset) * result.factor;
      }
      if (at == target_piece) {
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
          if (j == target_place) z[j] -= p.scale;
        }
      }
      pieces[at] = ignored ? make_uint4(0, 0, 0, 0) : P::Close(z);
    };
    // What was not kept, its last part first: that was read last and is the likeliest still cached.
    for (int first = thread; !p.losses_only && first < over; first += stride * kAhead) {
      uint4 v[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int back = first + i * stride;
        if (back < over) v[i] = pieces[count - 1 - back];
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int back = first + i * stride;
        if (back < over) gradient(v[i], count - 1 - back);
      }
    }
    const auto* next_pieces = reinterpret_cast<const uint4*>(row_of(next));
#pragma unroll
    for (int q = 0; q < kQuarters; ++q) {
#pragma unroll 2
      for (int at = begin_of(q); at < end_of(q); at += stride) {
        const uint4 v = cache[at];
        if (next < p.tokens) CopyAsync(cache + at, next_pieces + at);
        if (!p.losses_only) gradient(v, at);
      }
      CommitCopies();
    }
    target = next_target;
  }
}

// Any size and alignment.
template <typename T>
__global__ void __launch_bounds__(256) CrossEntropyAnyKernel(const CrossEntropyParams p) {
  using P = Pack16<T>;
  __shared__ float2 scratch[32];
  const int64_t t = blockIdx.x;
  T* row = static_cast<T*>(p.logits) + t * p.stride;
  const int64_t target = p.targets[t];
  if (target < 0) {
    if (threadIdx.x == 0) p.losses[t] = 0.0f;
    if (!p.losses_only) ClearRow(row, p.vocab);
    return;
  }
  const float target_logit = P::ToFloat(row[target]);
  Running running;
  for (int64_t i = threadIdx.x; i < p.vocab; i += blockDim.x) {
    const float z[1] = {P::ToFloat(row[i])};
    running.Add(z);
  }
  running = MergeBlock(running, scratch);
  const RowResult result = ResultOf(running, target_logit, p.scale);
  if (threadIdx.x == 0) p.losses[t] = result.loss;
  if (p.losses_only) return;
  for (int64_t i = threadIdx.x; i < p.vocab; i += blockDim.x) {
    const float e = ExpOf(P::ToFloat(row[i]), result.offset) * result.factor;
    row[i] = P::FromFloat(i == target ? e - p.scale : e);
  }
}

template <typename T>
cudaError_t Launch(const CrossEntropyParams& p, cudaStream_t stream) {
  constexpr int kSize = Pack16<T>::kSize;
  const auto blocks = static_cast<unsigned>(p.tokens);
  const bool pieces = reinterpret_cast<uintptr_t>(p.logits) % 16 == 0 && p.stride % kSize == 0 &&
                      p.vocab % kSize == 0 && p.vocab >= kSize;
  if (!pieces) {
    CrossEntropyAnyKernel<T><<<blocks, 256, 0, stream>>>(p);
    return cudaGetLastError();
  }
  int device = 0, limit = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  limit = (limit - 1024) / 16;  // pieces; 1024 bytes for what the kernel has besides
  const int64_t count = p.vocab / kSize;
  const auto kept = static_cast<int>(std::min<int64_t>(count, limit));
  const size_t shared = static_cast<size_t>(kept) * 16;
  void (*const kernel)(CrossEntropyParams, int) = CrossEntropyKernel<T>;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared));
  if (error != cudaSuccess) return error;
  // Two or more blocks a multiprocessor where they fit.
  const int threads = kept > limit / 2 ? 1024 : count > 1024 ? 512 : 128;
  int multiprocessors = 0, resident = 0;
  error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, shared);
  if (error != cudaSuccess) return error;
  const int64_t all = int64_t{multiprocessors} * std::max(resident, 1);
  kernel<<<static_cast<unsigned>(std::min(p.tokens, all)), threads, shared, stream>>>(p, kept);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchCrossEntropy(const CrossEntropyParams& p, cudaStream_t stream) {
  if (p.tokens < 0 || p.tokens > int64_t{1} << 30 || p.vocab < 1 || p.vocab > int64_t{1} << 30) {
    return cudaErrorInvalidValue;
  }
  if (p.tokens == 0) return cudaSuccess;
  return p.float_logits ? Launch<float>(p, stream) : Launch<Bf16>(p, stream);
}

}  // namespace evenkeel
