// A block takes 128 tokens by 64 columns; a thread 4 tokens by 8 columns, 16 bytes a load, all
// loads first. Bytes of 4 tokens by 4 columns are turned in registers, then cross shared memory as
// words of 4 tokens, so that rows are written in pieces of 64 bytes and columns in pieces of 128.
#include <cuda_fp8.h>

#include "runtime/ops/cuda/activation_functions.cuh"
#include "runtime/ops/cuda/fp8_cast_cuda.h"
#include "runtime/ops/cuda/row_pieces.cuh"
#include "runtime/ops/fp8_scale.h"

namespace evenkeel {
namespace {

using namespace row_pieces;  // NOLINT(google-build-using-namespace)

constexpr int kTokens = 128;
constexpr int kColumns = 64;
constexpr int kThreads = 256;
constexpr int kRows = 4;                      // tokens of a thread
constexpr int kAcross = kColumns / kPiece;    // threads side by side
constexpr int kWordsPitch = kTokens / 4 + 1;  // words of a column in shared memory
static_assert(kThreads == kAcross * kTokens / kRows);

// Where a matrix comes from. Values [kOutputs][kPiece] of one row and 8 columns; output o has
// format kE5M2[o] and begins at column `offset` of its target.
struct CastSource {
  static constexpr int kOutputs = 1;
  struct Raw {
    uint4 x;
  };
  const Bf16* x;
  int64_t x_stride;

  __device__ __forceinline__ Raw Load(int64_t row, int64_t column) const {
    return {LoadPiece(x + row * x_stride + column)};
  }
  static __device__ __forceinline__ void Open(const Raw& raw, float (&v)[kOutputs][kPiece]) {
    Unpack(raw.x, v[0]);
  }
};

template <GatedUnit kUnit>
struct GatedSource {
  static constexpr int kOutputs = 1;
  struct Raw {
    uint4 gate, up;
  };
  const Bf16* pair;
  int64_t pair_stride, columns;

  __device__ __forceinline__ Raw Load(int64_t row, int64_t column) const {
    const Bf16* at = pair + row * pair_stride + column;
    return {LoadPiece(at), LoadPiece(at + columns)};
  }
  static __device__ __forceinline__ void Open(const Raw& raw, float (&v)[kOutputs][kPiece]) {
    float up[kPiece];
    Unpack(raw.gate, v[0]);
    Unpack(raw.up, up);
#pragma unroll
    for (int j = 0; j < kPiece; ++j) v[0][j] = Gated<kUnit>(v[0][j], up[j]);
  }
};

// Outputs: the gate's gradient, up's, and h.
template <GatedUnit kUnit>
struct GatedGradientSource {
  static constexpr int kOutputs = 3;
  struct Raw {
    uint4 gate, up, dh;
  };
  const Bf16* pair;
  int64_t pair_stride, columns;
  const Bf16* dh;
  int64_t dh_stride;

  __device__ __forceinline__ Raw Load(int64_t row, int64_t column) const {
    const Bf16* at = pair + row * pair_stride + column;
    return {LoadPiece(at), LoadPiece(at + columns), LoadPiece(dh + row * dh_stride + column)};
  }
  static __device__ __forceinline__ void Open(const Raw& raw, float (&v)[kOutputs][kPiece]) {
    float gate[kPiece], up[kPiece], grad[kPiece];
    Unpack(raw.gate, gate);
    Unpack(raw.up, up);
    Unpack(raw.dh, grad);
#pragma unroll
    for (int j = 0; j < kPiece; ++j) {
      v[2][j] = GatedGradient<kUnit>(gate[j], up[j], grad[j], v[0][j], v[1][j]);
    }
  }
};

// One output of a kernel, as the device sees it.
struct Output {
  uint8_t* rows;  // of this output's first column
  int64_t rows_stride;
  uint8_t* columns;
  float* amax;
  const float* scale;
  bool is_e5m2;
};

template <int kOutputs>
struct Outputs {
  Output each[kOutputs];
};

__device__ __forceinline__ uint32_t PackFp8(const float* v, float scale, bool is_e5m2) {
  const __nv_fp8_interpretation_t format = is_e5m2 ? __NV_E5M2 : __NV_E4M3;
  const uint32_t low =
      __nv_cvt_float2_to_fp8x2(make_float2(v[0] * scale, v[1] * scale), __NV_SATFINITE, format);
  const uint32_t high =
      __nv_cvt_float2_to_fp8x2(make_float2(v[2] * scale, v[3] * scale), __NV_SATFINITE, format);
  return low | high << 16;
}

// Turns 4 rows of 4 bytes: byte j of word i becomes byte i of word j.
__device__ __forceinline__ void TurnBytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d,
                                          uint32_t (&out)[4]) {
  const uint32_t ab_low = __byte_perm(a, b, 0x5140), ab_high = __byte_perm(a, b, 0x7362);
  const uint32_t cd_low = __byte_perm(c, d, 0x5140), cd_high = __byte_perm(c, d, 0x7362);
  out[0] = __byte_perm(ab_low, cd_low, 0x5410);
  out[1] = __byte_perm(ab_low, cd_low, 0x7632);
  out[2] = __byte_perm(ab_high, cd_high, 0x5410);
  out[3] = __byte_perm(ab_high, cd_high, 0x7632);
}

// Raises *amax to the block's largest `value`, which is not negative: the order of such floats is
// that of their bits. scratch [kThreads / 32].
__device__ __forceinline__ void NoteLargest(float value, float* amax, uint32_t* scratch) {
  const uint32_t largest = __reduce_max_sync(0xffffffffu, __float_as_uint(value));
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = largest;
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t most = scratch[0];
    for (int w = 1; w < kThreads / 32; ++w) most = max(most, scratch[w]);
    // Most blocks find a larger value there already.
    auto* at = reinterpret_cast<uint32_t*>(amax);
    if (most > *static_cast<volatile uint32_t*>(at)) atomicMax(at, most);
  }
}

template <class Source>
__global__ void __launch_bounds__(kThreads)
    Fp8Kernel(const Source source, const Outputs<Source::kOutputs> outputs, int64_t tokens,
              int64_t columns) {
  __shared__ uint32_t words[kColumns * kWordsPitch];
  __shared__ uint32_t scratch[Source::kOutputs][kThreads / 32];
  const int across = static_cast<int>(threadIdx.x) % kAcross;
  const int group = static_cast<int>(threadIdx.x) / kAcross;
  const int64_t first_token = static_cast<int64_t>(blockIdx.x) * kTokens;
  const int64_t first_column = static_cast<int64_t>(blockIdx.y) * kColumns;
  const int64_t token = first_token + group * kRows, column = first_column + across * kPiece;
  const int64_t padded = (tokens + 15) / 16 * 16;
  typename Source::Raw raw[kRows] = {};
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (token + i < tokens && column < columns) raw[i] = source.Load(token + i, column);
  }
  uint32_t packed[Source::kOutputs][kRows][2];
  float largest[Source::kOutputs] = {};
  float scale[Source::kOutputs];
#pragma unroll
  for (int o = 0; o < Source::kOutputs; ++o) scale[o] = *outputs.each[o].scale;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    float v[Source::kOutputs][kPiece];
    Source::Open(raw[i], v);
#pragma unroll
    for (int o = 0; o < Source::kOutputs; ++o) {
      const Output& out = outputs.each[o];
#pragma unroll
      for (int j = 0; j < kPiece; ++j) largest[o] = fmaxf(largest[o], fabsf(v[o][j]));
      packed[o][i][0] = PackFp8(v[o], scale[o], out.is_e5m2);
      packed[o][i][1] = PackFp8(v[o] + 4, scale[o], out.is_e5m2);
      if (out.rows != nullptr && token + i < tokens && column < columns) {
        *reinterpret_cast<uint2*>(out.rows + (token + i) * out.rows_stride + column) =
            make_uint2(packed[o][i][0], packed[o][i][1]);
      }
    }
  }
#pragma unroll
  for (int o = 0; o < Source::kOutputs; ++o) {
    const Output& out = outputs.each[o];
    NoteLargest(largest[o], out.amax, scratch[o]);
    if (out.columns == nullptr) continue;
    __syncthreads();  // the output before this one has been read
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t turned[4];
      TurnBytes(packed[o][0][half], packed[o][1][half], packed[o][2][half], packed[o][3][half],
                turned);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        words[(across * kPiece + half * 4 + j) * kWordsPitch + group] = turned[j];
      }
    }
    __syncthreads();
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int64_t at = first_token + lane * 4;
    for (int c = warp; c < kColumns; c += kThreads / 32) {
      if (first_column + c < columns && at < padded) {
        *reinterpret_cast<uint32_t*>(out.columns + (first_column + c) * padded + at) =
            words[c * kWordsPitch + lane];
      }
    }
  }
}

Output OutputOf(const Fp8Target& target, int64_t stride, bool is_e5m2, int64_t tokens,
                int64_t offset) {
  const int64_t padded = (tokens + 15) / 16 * 16;
  auto* rows = static_cast<uint8_t*>(target.rows);
  auto* columns = static_cast<uint8_t*>(target.columns);
  return {rows == nullptr ? nullptr : rows + offset,
          stride,
          columns == nullptr ? nullptr : columns + offset * padded,
          target.amax,
          target.scale,
          is_e5m2};
}

template <class Source>
cudaError_t Run(const Source& source, const Outputs<Source::kOutputs>& outputs, int64_t tokens,
                int64_t columns, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(CeilDiv(tokens, kTokens)),
                  static_cast<unsigned>(CeilDiv(columns, kColumns)));
  Fp8Kernel<<<grid, kThreads, 0, stream>>>(source, outputs, tokens, columns);
  return cudaGetLastError();
}

bool IsValid(int64_t tokens, int64_t columns, const void* p, int64_t stride) {
  return tokens >= 0 && columns >= 0 && columns % 16 == 0 && columns / kColumns < 65535 &&
         HasPieces(p, stride, columns);
}

template <GatedUnit kUnit>
cudaError_t RunGated(const Fp8GatedUnitParams& p, cudaStream_t stream) {
  const auto* pair = static_cast<const Bf16*>(p.pair);
  const Output h = OutputOf(p.h, p.columns, false, p.tokens, 0);
  if (p.dh == nullptr) {
    const GatedSource<kUnit> source{pair, p.pair_stride, p.columns};
    return Run(source, Outputs<1>{{h}}, p.tokens, p.columns, stream);
  }
  const GatedGradientSource<kUnit> source{pair, p.pair_stride, p.columns,
                                          static_cast<const Bf16*>(p.dh), p.dh_stride};
  const Outputs<3> outputs{{OutputOf(p.dpair, 2 * p.columns, true, p.tokens, 0),
                            OutputOf(p.dpair, 2 * p.columns, true, p.tokens, p.columns), h}};
  return Run(source, outputs, p.tokens, p.columns, stream);
}

__global__ void ScaleKernel(const float* amax, float largest, float* scale, float* inverse) {
  *scale = Fp8ScaleOf(*amax, largest);
  *inverse = 1.0f / *scale;
}

}  // namespace

cudaError_t LaunchFp8Cast(const Fp8CastParams& p, cudaStream_t stream) {
  if (!IsValid(p.tokens, p.columns, p.x, p.x_stride)) return cudaErrorInvalidValue;
  if (p.tokens == 0 || p.columns == 0) return cudaSuccess;
  const CastSource source{static_cast<const Bf16*>(p.x), p.x_stride};
  return Run(source, Outputs<1>{{OutputOf(p.y, p.columns, p.is_e5m2, p.tokens, 0)}}, p.tokens,
             p.columns, stream);
}

cudaError_t LaunchFp8GatedUnit(const Fp8GatedUnitParams& p, cudaStream_t stream) {
  if (!IsValid(p.tokens, p.columns, p.pair, p.pair_stride) ||
      !HasPieces(p.dh, p.dh_stride, p.columns)) {
    return cudaErrorInvalidValue;
  }
  if (p.tokens == 0 || p.columns == 0) return cudaSuccess;
  return p.unit == GatedUnit::kSwiGlu ? RunGated<GatedUnit::kSwiGlu>(p, stream)
                                      : RunGated<GatedUnit::kSglu>(p, stream);
}

cudaError_t LaunchFp8Scale(const float* amax, bool is_e5m2, float* scale, float* inverse,
                           cudaStream_t stream) {
  ScaleKernel<<<1, 1, 0, stream>>>(amax, is_e5m2 ? kLargestE5M2 : kLargestE4M3, scale, inverse);
  return cudaGetLastError();
}

}  // namespace evenkeel
