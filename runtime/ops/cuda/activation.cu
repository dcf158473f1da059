// Each thread takes a few pieces of 8 elements, a block's width apart, loads them all, then
// computes. Rows are any number of pieces long, so the work is cut regardless of where rows end.
#include <limits>

#include "runtime/ops/cuda/activation_cuda.h"
#include "runtime/ops/cuda/activation_functions.cuh"
#include "runtime/ops/cuda/row_pieces.cuh"

namespace evenkeel {
namespace {

using namespace row_pieces;  // NOLINT(google-build-using-namespace)

constexpr int kThreads = 256;
constexpr int kPerThread = 2;

// The row and the place in it of the i-th unit of this thread, units being pieces or elements.
struct Place {
  int64_t row;
  int64_t unit;
};

// `units` in a row, fewer than 2^31. One 64-bit division a block, the rest in 32 bits.
__device__ __forceinline__ Place PlaceOf(int i, int64_t units) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kPerThread);
  const int64_t row = first / units;
  const auto at = static_cast<uint32_t>(first - row * units) + i * kThreads + threadIdx.x;
  const auto width = static_cast<uint32_t>(units);
  return {row + at / width, at % width};
}

template <Activation kActivation, bool kBackward>
__global__ void __launch_bounds__(kThreads) ActivationKernel(const ActivationParams p) {
  const auto* x = static_cast<const Bf16*>(p.x);
  const auto* dy = static_cast<const Bf16*>(p.dy);
  auto* y = static_cast<Bf16*>(p.y);
  uint4 in[kPerThread], grad[kPerThread];
  Place place[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    place[i] = PlaceOf(i, p.columns / kPiece);
    if (place[i].row >= p.tokens) break;
    in[i] = LoadPiece(x + place[i].row * p.x_stride + place[i].unit * kPiece);
    if (kBackward) grad[i] = LoadPiece(dy + place[i].row * p.dy_stride + place[i].unit * kPiece);
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (place[i].row >= p.tokens) break;
    float a[kPiece], d[kPiece];
    Unpack(in[i], a);
    if (kBackward) Unpack(grad[i], d);
#pragma unroll
    for (int j = 0; j < kPiece; ++j) {
      if constexpr (kBackward) {
        float value, derivative;
        ActivateWithDerivative<kActivation>(a[j], value, derivative);
        a[j] = d[j] * derivative;
      } else {
        a[j] = Activate<kActivation>(a[j]);
      }
    }
    StorePiece(y + place[i].row * p.y_stride + place[i].unit * kPiece, Pack(a));
  }
}

template <Activation kActivation, bool kBackward>
__global__ void __launch_bounds__(kThreads) ActivationAnyKernel(const ActivationParams p) {
  for (int64_t row = blockIdx.x; row < p.tokens; row += gridDim.x) {
    for (int64_t i = threadIdx.x; i < p.columns; i += kThreads) {
      const float x = __bfloat162float(static_cast<const Bf16*>(p.x)[row * p.x_stride + i]);
      float value, derivative;
      ActivateWithDerivative<kActivation>(x, value, derivative);
      if (kBackward) {
        value =
            derivative * __bfloat162float(static_cast<const Bf16*>(p.dy)[row * p.dy_stride + i]);
      }
      static_cast<Bf16*>(p.y)[row * p.y_stride + i] = __float2bfloat16(value);
    }
  }
}

template <GatedUnit kUnit>
__global__ void __launch_bounds__(kThreads) GatedForwardKernel(const GatedUnitParams p) {
  const auto* pair = static_cast<const Bf16*>(p.pair);
  uint4 gate[kPerThread], up[kPerThread];
  Place place[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    place[i] = PlaceOf(i, p.columns / kPiece);
    if (place[i].row >= p.tokens) break;
    const Bf16* at = pair + place[i].row * p.pair_stride + place[i].unit * kPiece;
    gate[i] = LoadPiece(at);
    up[i] = LoadPiece(at + p.columns);
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (place[i].row >= p.tokens) break;
    float g[kPiece], u[kPiece];
    Unpack(gate[i], g);
    Unpack(up[i], u);
#pragma unroll
    for (int j = 0; j < kPiece; ++j) g[j] = Gated<kUnit>(g[j], u[j]);
    StorePiece(static_cast<Bf16*>(p.h) + place[i].row * p.h_stride + place[i].unit * kPiece,
               Pack(g));
  }
}

template <GatedUnit kUnit>
__global__ void __launch_bounds__(kThreads) GatedBackwardKernel(const GatedUnitParams p) {
  const auto* pair = static_cast<const Bf16*>(p.pair);
  uint4 gate[kPerThread], up[kPerThread], grad[kPerThread];
  Place place[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    place[i] = PlaceOf(i, p.columns / kPiece);
    if (place[i].row >= p.tokens) break;
    const Bf16* at = pair + place[i].row * p.pair_stride + place[i].unit * kPiece;
    gate[i] = LoadPiece(at);
    up[i] = LoadPiece(at + p.columns);
    grad[i] = LoadPiece(static_cast<const Bf16*>(p.dh) + place[i].row * p.dh_stride +
                        place[i].unit * kPiece);
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (place[i].row >= p.tokens) break;
    float g[kPiece], u[kPiece], d[kPiece], h[kPiece];
    Unpack(gate[i], g);
    Unpack(up[i], u);
    Unpack(grad[i], d);
#pragma unroll
    for (int j = 0; j < kPiece; ++j) {
      float dg, du;
      h[j] = GatedGradient<kUnit>(g[j], u[j], d[j], dg, du);
      g[j] = dg;
      u[j] = du;
    }
    Bf16* out =
        static_cast<Bf16*>(p.dpair) + place[i].row * p.dpair_stride + place[i].unit * kPiece;
    StorePiece(out, Pack(g));
    StorePiece(out + p.columns, Pack(u));
    if (p.h != nullptr) {
      StorePiece(static_cast<Bf16*>(p.h) + place[i].row * p.h_stride + place[i].unit * kPiece,
                 Pack(h));
    }
  }
}

template <GatedUnit kUnit, bool kBackward>
__global__ void __launch_bounds__(kThreads) GatedAnyKernel(const GatedUnitParams p) {
  for (int64_t row = blockIdx.x; row < p.tokens; row += gridDim.x) {
    const Bf16* gate = static_cast<const Bf16*>(p.pair) + row * p.pair_stride;
    for (int64_t i = threadIdx.x; i < p.columns; i += kThreads) {
      const float g = __bfloat162float(gate[i]), u = __bfloat162float(gate[i + p.columns]);
      float h;
      if constexpr (kBackward) {
        float dg, du;
        const float d = __bfloat162float(static_cast<const Bf16*>(p.dh)[row * p.dh_stride + i]);
        h = GatedGradient<kUnit>(g, u, d, dg, du);
        Bf16* out = static_cast<Bf16*>(p.dpair) + row * p.dpair_stride + i;
        out[0] = __float2bfloat16(dg);
        out[p.columns] = __float2bfloat16(du);
      } else {
        h = Gated<kUnit>(g, u);
      }
      if (p.h != nullptr) static_cast<Bf16*>(p.h)[row * p.h_stride + i] = __float2bfloat16(h);
    }
  }
}

constexpr int64_t kMaxGrid = std::numeric_limits<int32_t>::max();

// Blocks that cover all pieces, or 0 if that is more than a grid can have.
int64_t PieceBlocks(int64_t tokens, int64_t columns) {
  const int64_t blocks = CeilDiv(tokens * (columns / kPiece), kThreads * kPerThread);
  return blocks <= kMaxGrid && columns / kPiece < (int64_t{1} << 30) ? blocks : 0;
}

unsigned RowBlocks(int64_t tokens) {
  return static_cast<unsigned>(tokens < kMaxGrid ? tokens : kMaxGrid);
}

template <Activation kActivation>
void RunActivation(const ActivationParams& p, bool pieces, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(PieceBlocks(p.tokens, p.columns));
  const bool backward = p.dy != nullptr;
  if (pieces && blocks > 0) {
    if (backward) {
      ActivationKernel<kActivation, true><<<blocks, kThreads, 0, stream>>>(p);
    } else {
      ActivationKernel<kActivation, false><<<blocks, kThreads, 0, stream>>>(p);
    }
  } else if (backward) {
    ActivationAnyKernel<kActivation, true><<<RowBlocks(p.tokens), kThreads, 0, stream>>>(p);
  } else {
    ActivationAnyKernel<kActivation, false><<<RowBlocks(p.tokens), kThreads, 0, stream>>>(p);
  }
}

template <GatedUnit kUnit>
void RunGated(const GatedUnitParams& p, bool backward, cudaStream_t stream) {
  const bool pieces =
      HasPieces(p.pair, p.pair_stride, p.columns) && HasPieces(p.h, p.h_stride, p.columns) &&
      HasPieces(p.dh, p.dh_stride, p.columns) && HasPieces(p.dpair, p.dpair_stride, p.columns);
  const auto blocks = static_cast<unsigned>(PieceBlocks(p.tokens, p.columns));
  if (pieces && blocks > 0) {
    if (backward) {
      GatedBackwardKernel<kUnit><<<blocks, kThreads, 0, stream>>>(p);
    } else {
      GatedForwardKernel<kUnit><<<blocks, kThreads, 0, stream>>>(p);
    }
  } else if (backward) {
    GatedAnyKernel<kUnit, true><<<RowBlocks(p.tokens), kThreads, 0, stream>>>(p);
  } else {
    GatedAnyKernel<kUnit, false><<<RowBlocks(p.tokens), kThreads, 0, stream>>>(p);
  }
}

cudaError_t LaunchGated(const GatedUnitParams& p, bool backward, cudaStream_t stream) {
  if (p.tokens < 0 || p.columns < 0) return cudaErrorInvalidValue;
  if (p.tokens == 0 || p.columns == 0) return cudaSuccess;
  switch (p.unit) {
    case GatedUnit::kSwiGlu:
      RunGated<GatedUnit::kSwiGlu>(p, backward, stream);
      break;
    case GatedUnit::kSglu:
      RunGated<GatedUnit::kSglu>(p, backward, stream);
      break;
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchActivation(const ActivationParams& p, cudaStream_t stream) {
  if (p.tokens < 0 || p.columns < 0) return cudaErrorInvalidValue;
  if (p.tokens == 0 || p.columns == 0) return cudaSuccess;
  const bool pieces = HasPieces(p.x, p.x_stride, p.columns) &&
                      HasPieces(p.dy, p.dy_stride, p.columns) &&
                      HasPieces(p.y, p.y_stride, p.columns);
  switch (p.activation) {
    case Activation::kSilu:
      RunActivation<Activation::kSilu>(p, pieces, stream);
      break;
    case Activation::kElu:
      RunActivation<Activation::kElu>(p, pieces, stream);
      break;
    case Activation::kOneElu:
      RunActivation<Activation::kOneElu>(p, pieces, stream);
      break;
  }
  return cudaGetLastError();
}

cudaError_t LaunchGatedUnitForward(const GatedUnitParams& params, cudaStream_t stream) {
  if (params.dh != nullptr || params.dpair != nullptr) return cudaErrorInvalidValue;
  return LaunchGated(params, false, stream);
}

cudaError_t LaunchGatedUnitBackward(const GatedUnitParams& params, cudaStream_t stream) {
  return LaunchGated(params, true, stream);
}

}  // namespace evenkeel
