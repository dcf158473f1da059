// A team of threads holds a whole row in registers, 16 bytes a load with all loads of the row in
// flight at once: a warp for short rows, eight warps for long ones. Everything
// is read once and written once. Gains' gradients are summed over a block's rows in registers, then
// over the block's teams in shared memory, then over the blocks by LaunchColumnSum.
#include <algorithm>

#include "runtime/ops/cuda/column_sum.h"
#include "runtime/ops/cuda/norm_cuda.h"
#include "runtime/ops/cuda/row_pieces.cuh"

namespace evenkeel {
namespace {

using namespace row_pieces;  // NOLINT(google-build-using-namespace)

// Blocks of a backward pass with a gain: three a multiprocessor of the largest Hopper, all
// resident. A constant, so that sums have the same order on every GPU.
constexpr int64_t kMaxSumBlocks = 396;

template <int kWarps, int kPieces>
struct RowTeam {
  static constexpr int kTeams = kWarps == 1 ? 4 : 1;  // in a block
  static constexpr int kThreads = 32 * kWarps;        // in a team
  static constexpr int kBlock = kThreads * kTeams;

  int team = static_cast<int>(threadIdx.x) / kThreads;
  int lane = static_cast<int>(threadIdx.x) % kThreads;
  // Element of this thread's piece i.
  __device__ __forceinline__ int Column(int i) const { return (i * kThreads + lane) * kPiece; }
  __device__ __forceinline__ void Load(uint4 (&v)[kPieces], const Bf16* row, int columns) const {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      v[i] = Column(i) < columns ? LoadPiece(row + Column(i)) : make_uint4(0, 0, 0, 0);
    }
  }
};

template <int kWarps, int kPieces>
__global__ void __launch_bounds__(RowTeam<kWarps, kPieces>::kBlock)
    RmsNormForwardKernel(const RmsNormForwardParams p) {
  using Team = RowTeam<kWarps, kPieces>;
  __shared__ float scratch[kWarps];
  const Team team;
  const int columns = static_cast<int>(p.columns);
  const int64_t rows = p.tokens * p.heads;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * Team::kTeams + team.team; row < rows;
       row += static_cast<int64_t>(gridDim.x) * Team::kTeams) {
    uint4 x[kPieces], m[kPieces];
    team.Load(x, static_cast<const Bf16*>(p.x) + RowOffset(p.x_strides, row, p.heads), columns);
    if (p.delta != nullptr) {
      team.Load(m, static_cast<const Bf16*>(p.delta) + RowOffset(p.delta_strides, row, p.heads),
                columns);
      Bf16* x_mid = static_cast<Bf16*>(p.x_mid) + RowOffset(p.x_mid_strides, row, p.heads);
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        float a[kPiece], b[kPiece];
        Unpack(x[i], a);
        Unpack(m[i], b);
#pragma unroll
        for (int j = 0; j < kPiece; ++j) a[j] += b[j];
        x[i] = Pack(a);
        if (team.Column(i) < columns) StorePiece(x_mid + team.Column(i), x[i]);
      }
    }
    if (p.gate != nullptr) {
      team.Load(m, static_cast<const Bf16*>(p.gate) + RowOffset(p.gate_strides, row, p.heads),
                columns);
    } else if (p.gain != nullptr) {
      team.Load(m, static_cast<const Bf16*>(p.gain), columns);
    }
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      float a[kPiece];
      Unpack(x[i], a);
#pragma unroll
      for (int j = 0; j < kPiece; ++j) squares += a[j] * a[j];
    }
    squares = TeamSum<kWarps>(squares, scratch);
    const float r = 1.0f / sqrtf(squares / static_cast<float>(columns) + p.eps);
    Bf16* y = static_cast<Bf16*>(p.y) + RowOffset(p.y_strides, row, p.heads);
    const bool scaled = p.gate != nullptr || p.gain != nullptr;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      float a[kPiece], b[kPiece];
      Unpack(x[i], a);
      Unpack(m[i], b);
#pragma unroll
      for (int j = 0; j < kPiece; ++j) a[j] *= scaled ? r * b[j] : r;
      if (team.Column(i) < columns) StorePiece(y + team.Column(i), Pack(a));
    }
  }
}

// Any size and alignment: a block a row, an element at a time.
__global__ void __launch_bounds__(256) RmsNormForwardAnyKernel(const RmsNormForwardParams p) {
  __shared__ float scratch[8];
  const int64_t rows = p.tokens * p.heads;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const Bf16* x = static_cast<const Bf16*>(p.x) + RowOffset(p.x_strides, row, p.heads);
    if (p.delta != nullptr) {
      const Bf16* delta =
          static_cast<const Bf16*>(p.delta) + RowOffset(p.delta_strides, row, p.heads);
      Bf16* x_mid = static_cast<Bf16*>(p.x_mid) + RowOffset(p.x_mid_strides, row, p.heads);
      for (int64_t i = threadIdx.x; i < p.columns; i += blockDim.x) {
        x_mid[i] = __float2bfloat16(__bfloat162float(x[i]) + __bfloat162float(delta[i]));
      }
      x = x_mid;
    }
    float squares = 0.0f;
    for (int64_t i = threadIdx.x; i < p.columns; i += blockDim.x) {
      squares += __bfloat162float(x[i]) * __bfloat162float(x[i]);
    }
    squares = TeamSum<8>(squares, scratch);
    const float r = 1.0f / sqrtf(squares / static_cast<float>(p.columns) + p.eps);
    const Bf16* m = p.gate != nullptr
                        ? static_cast<const Bf16*>(p.gate) + RowOffset(p.gate_strides, row, p.heads)
                        : static_cast<const Bf16*>(p.gain);
    Bf16* y = static_cast<Bf16*>(p.y) + RowOffset(p.y_strides, row, p.heads);
    for (int64_t i = threadIdx.x; i < p.columns; i += blockDim.x) {
      const float factor = m != nullptr ? r * __bfloat162float(m[i]) : r;
      y[i] = __float2bfloat16(__bfloat162float(x[i]) * factor);
    }
  }
}

// What the backward pass reads of a row, packed.
template <int kPieces>
struct BackwardRow {
  uint4 x[kPieces], dy[kPieces], residual[kPieces];

  template <typename Team>
  __device__ __forceinline__ void Load(const Team& team, const RmsNormBackwardParams& p,
                                       int64_t row) {
    const int columns = static_cast<int>(p.columns);
    team.Load(x, static_cast<const Bf16*>(p.x) + RowOffset(p.x_strides, row, p.heads), columns);
    team.Load(dy, static_cast<const Bf16*>(p.dy) + RowOffset(p.dy_strides, row, p.heads), columns);
    if (p.dresidual != nullptr) {
      team.Load(
          residual,
          static_cast<const Bf16*>(p.dresidual) + RowOffset(p.dresidual_strides, row, p.heads),
          columns);
    }
  }
};

template <bool kHasGain, int kWarps, int kPieces>
__global__ void __launch_bounds__(RowTeam<kWarps, kPieces>::kBlock,
                                  kWarps == 1 || kPieces == 1 ? 3
                                                              : (kHasGain || kPieces == 8 ? 1 : 2))
    RmsNormBackwardKernel(const RmsNormBackwardParams p) {
  using Team = RowTeam<kWarps, kPieces>;
  // With a gain few blocks stay and take row after row: the next row's loads are in flight while
  // this one is computed, if registers allow.
  constexpr bool kAhead = kHasGain && kPieces <= 2;
  __shared__ FloatPair scratch[kWarps];
  extern __shared__ float4 block_sum_storage[];  // [C] float32, for several teams
  const Team team;
  const int columns = static_cast<int>(p.columns);
  const int64_t rows = p.tokens * p.heads, step = static_cast<int64_t>(gridDim.x) * Team::kTeams;
  float dgain[kHasGain ? kPieces : 1][kPiece] = {};
  int64_t row = static_cast<int64_t>(blockIdx.x) * Team::kTeams + team.team;
  BackwardRow<kPieces> now, next;
  if (kAhead && row < rows) next.Load(team, p, row);
  for (; row < rows; row += step) {
    if constexpr (kAhead) {
      now = next;
      if (row + step < rows) next.Load(team, p, row + step);
    } else {
      now.Load(team, p, row);
    }
    uint4(&x)[kPieces] = now.x;
    uint4(&dy)[kPieces] = now.dy;
    uint4(&residual)[kPieces] = now.residual;
    uint4 m[kPieces];
    // A gain stays in the first-level cache: no need to hold it in registers.
    const bool gated = !kHasGain && p.gate != nullptr;
    if (gated) {
      team.Load(m, static_cast<const Bf16*>(p.gate) + RowOffset(p.gate_strides, row, p.heads),
                columns);
    }
    FloatPair sums = {0.0f, 0.0f};  // of x d and of x^2
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      float a[kPiece], d[kPiece], g[kPiece];
      Unpack(x[i], a);
      Unpack(dy[i], d);
      if (kHasGain) {
        uint4 gain = make_uint4(0, 0, 0, 0);
        if (team.Column(i) < columns) {
          gain = LoadPiece(static_cast<const Bf16*>(p.gain) + team.Column(i));
        }
        Unpack(gain, g);
      } else {
        Unpack(m[i], g);
      }
#pragma unroll
      for (int j = 0; j < kPiece; ++j) {
        // Not d g as below, which the compiler would keep for the second loop.
        const float product = a[j] * d[j];
        sums.first += kHasGain || gated ? product * g[j] : product;
        sums.second += a[j] * a[j];
      }
    }
    sums = TeamSum<kWarps>(sums, scratch);
    const float r = 1.0f / sqrtf(sums.second / static_cast<float>(columns) + p.eps);
    const float mean = sums.first * r * r / static_cast<float>(columns);  // of xh d, times r for x
    Bf16* dx = static_cast<Bf16*>(p.dx) + RowOffset(p.dx_strides, row, p.heads);
    Bf16* dgate =
        gated ? static_cast<Bf16*>(p.dgate) + RowOffset(p.dgate_strides, row, p.heads) : nullptr;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      float a[kPiece], d[kPiece], g[kPiece], e[kPiece];
      Unpack(x[i], a);
      Unpack(dy[i], d);
      if (kHasGain) {
        uint4 gain = make_uint4(0, 0, 0, 0);
        if (team.Column(i) < columns) {
          gain = LoadPiece(static_cast<const Bf16*>(p.gain) + team.Column(i));
        }
        Unpack(gain, g);
      } else {
        Unpack(m[i], g);
      }
      if (gated) {
        float dg[kPiece];
#pragma unroll
        for (int j = 0; j < kPiece; ++j) dg[j] = d[j] * (a[j] * r);
        if (team.Column(i) < columns) StorePiece(dgate + team.Column(i), Pack(dg));
      }
      if (p.dresidual != nullptr) {
        Unpack(residual[i], e);
      } else {
#pragma unroll
        for (int j = 0; j < kPiece; ++j) e[j] = 0.0f;
      }
#pragma unroll
      for (int j = 0; j < kPiece; ++j) {
        if (kHasGain) dgain[i][j] += a[j] * r * d[j];
        const float product = kHasGain || gated ? d[j] * g[j] : d[j];
        e[j] += r * (product - a[j] * mean);
      }
      if (team.Column(i) < columns) StorePiece(dx + team.Column(i), Pack(e));
    }
  }
  if constexpr (kHasGain) {
    float* partial = static_cast<float*>(p.workspace) + blockIdx.x * p.columns;
    float* block_sum = Team::kTeams == 1 ? partial : reinterpret_cast<float*>(block_sum_storage);
    for (int t = 0; t < Team::kTeams; ++t) {
      if (team.team == t) {
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
          if (team.Column(i) >= columns) continue;
          float sum[kPiece];
          if (t > 0) {
            LoadFloats(block_sum + team.Column(i), sum);
#pragma unroll
            for (int j = 0; j < kPiece; ++j) dgain[i][j] += sum[j];
          }
          StoreFloats((t + 1 == Team::kTeams ? partial : block_sum) + team.Column(i), dgain[i]);
        }
      }
      if (t + 1 < Team::kTeams) __syncthreads();
    }
  }
}

__global__ void __launch_bounds__(256) RmsNormBackwardAnyKernel(const RmsNormBackwardParams p) {
  __shared__ FloatPair scratch[8];
  const int64_t rows = p.tokens * p.heads;
  float* partial =
      p.gain == nullptr ? nullptr : static_cast<float*>(p.workspace) + blockIdx.x * p.columns;
  if (partial != nullptr) {
    for (int64_t i = threadIdx.x; i < p.columns; i += blockDim.x) partial[i] = 0.0f;
  }
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const Bf16* x = static_cast<const Bf16*>(p.x) + RowOffset(p.x_strides, row, p.heads);
    const Bf16* dy = static_cast<const Bf16*>(p.dy) + RowOffset(p.dy_strides, row, p.heads);
    const Bf16* m = p.gate != nullptr
                        ? static_cast<const Bf16*>(p.gate) + RowOffset(p.gate_strides, row, p.heads)
                        : static_cast<const Bf16*>(p.gain);
    FloatPair sums = {0.0f, 0.0f};  // of x d and of x^2
    for (int64_t i = threadIdx.x; i < p.columns; i += blockDim.x) {
      const float a = __bfloat162float(x[i]), d = __bfloat162float(dy[i]);
      sums.first += a * (m != nullptr ? d * __bfloat162float(m[i]) : d);
      sums.second += a * a;
    }
    sums = TeamSum<8>(sums, scratch);
    const float r = 1.0f / sqrtf(sums.second / static_cast<float>(p.columns) + p.eps);
    const float mean = sums.first * r * r / static_cast<float>(p.columns);
    const Bf16* residual =
        p.dresidual == nullptr
            ? nullptr
            : static_cast<const Bf16*>(p.dresidual) + RowOffset(p.dresidual_strides, row, p.heads);
    Bf16* dx = static_cast<Bf16*>(p.dx) + RowOffset(p.dx_strides, row, p.heads);
    for (int64_t i = threadIdx.x; i < p.columns; i += blockDim.x) {
      const float a = __bfloat162float(x[i]), d = __bfloat162float(dy[i]);
      const float product = m != nullptr ? d * __bfloat162float(m[i]) : d;
      const float e = residual != nullptr ? __bfloat162float(residual[i]) : 0.0f;
      if (partial != nullptr) partial[i] += a * r * d;
      if (p.gate != nullptr) {
        static_cast<Bf16*>(p.dgate)[RowOffset(p.dgate_strides, row, p.heads) + i] =
            __float2bfloat16(d * (a * r));
      }
      dx[i] = __float2bfloat16(e + r * (product - a * mean));
    }
  }
}

// Calls run.operator()<kWarps, kPieces>() for the team of rows of `columns`; false if there is
// none. Sums over rows take registers, so their teams are larger.
template <bool kSums, typename Run>
bool DispatchTeam(int64_t columns, const Run& run) {
  const int64_t pieces = columns / kPiece;
  if (pieces <= 32) {
    run.template operator()<1, 1>();
  } else if (pieces <= 64) {
    run.template operator()<1, 2>();
  } else if (pieces <= 128) {
    run.template operator()<1, 4>();
  } else if (pieces <= 256) {
    run.template operator()<kSums ? 8 : 1, kSums ? 1 : 8>();
  } else if (pieces <= 512) {
    run.template operator()<8, 2>();
  } else if (pieces <= 1024) {
    run.template operator()<8, 4>();
  } else if (pieces <= 2048) {
    run.template operator()<8, 8>();
  } else {
    return false;
  }
  return true;
}

constexpr int64_t kMaxGrid = int64_t{1} << 30;

}  // namespace

cudaError_t LaunchRmsNormForward(const RmsNormForwardParams& p, cudaStream_t stream) {
  const int64_t rows = p.tokens * p.heads;
  if (p.tokens < 0 || p.heads < 1 || p.columns < 1 || (p.gain != nullptr && p.gate != nullptr) ||
      (p.delta == nullptr) != (p.x_mid == nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (rows == 0) return cudaSuccess;
  const bool pieces =
      HasPieces(p.x, p.x_strides, p.columns) && HasPieces(p.delta, p.delta_strides, p.columns) &&
      HasPieces(p.x_mid, p.x_mid_strides, p.columns) && HasPieces(p.gain, 0, p.columns) &&
      HasPieces(p.gate, p.gate_strides, p.columns) && HasPieces(p.y, p.y_strides, p.columns);
  const auto run = [&]<int kWarps, int kPieces>() {
    using Team = RowTeam<kWarps, kPieces>;
    const int64_t blocks = std::min(CeilDiv(rows, Team::kTeams), kMaxGrid);
    RmsNormForwardKernel<kWarps, kPieces>
        <<<static_cast<unsigned>(blocks), Team::kBlock, 0, stream>>>(p);
  };
  if (!pieces || !DispatchTeam<false>(p.columns, run)) {
    RmsNormForwardAnyKernel<<<static_cast<unsigned>(std::min(rows, kMaxGrid)), 256, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

size_t RmsNormBackwardWorkspaceBytes(int64_t rows, int64_t columns) {
  return static_cast<size_t>(std::min(rows, kMaxSumBlocks) * columns) * sizeof(float);
}

cudaError_t LaunchRmsNormBackward(const RmsNormBackwardParams& p, cudaStream_t stream) {
  const int64_t rows = p.tokens * p.heads;
  if (p.tokens < 0 || p.heads < 1 || p.columns < 1 || (p.gain != nullptr && p.gate != nullptr) ||
      (p.gain == nullptr) != (p.dgain == nullptr) || (p.gate == nullptr) != (p.dgate == nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (rows == 0) return cudaSuccess;
  const bool pieces =
      HasPieces(p.x, p.x_strides, p.columns) && HasPieces(p.gain, 0, p.columns) &&
      HasPieces(p.gate, p.gate_strides, p.columns) && HasPieces(p.dy, p.dy_strides, p.columns) &&
      HasPieces(p.dresidual, p.dresidual_strides, p.columns) &&
      HasPieces(p.dx, p.dx_strides, p.columns) && HasPieces(p.dgate, p.dgate_strides, p.columns);
  int64_t blocks = 0;
  const auto run_plain = [&]<int kWarps, int kPieces>() {
    using Team = RowTeam<kWarps, kPieces>;
    blocks = std::min(CeilDiv(rows, Team::kTeams), kMaxGrid);
    RmsNormBackwardKernel<false, kWarps, kPieces>
        <<<static_cast<unsigned>(blocks), Team::kBlock, 0, stream>>>(p);
  };
  const auto run_sums = [&]<int kWarps, int kPieces>() {
    using Team = RowTeam<kWarps, kPieces>;
    blocks = std::min(CeilDiv(rows, Team::kTeams), kMaxSumBlocks);
    const size_t shared = Team::kTeams > 1 ? static_cast<size_t>(p.columns) * sizeof(float) : 0;
    RmsNormBackwardKernel<true, kWarps, kPieces>
        <<<static_cast<unsigned>(blocks), Team::kBlock, shared, stream>>>(p);
  };
  if (!pieces || !(p.gain == nullptr ? DispatchTeam<false>(p.columns, run_plain)
                                     : DispatchTeam<true>(p.columns, run_sums))) {
    blocks = std::min(rows, kMaxSumBlocks);
    RmsNormBackwardAnyKernel<<<static_cast<unsigned>(blocks), 256, 0, stream>>>(p);
  }
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  if (p.gain == nullptr) return cudaSuccess;
  return LaunchColumnSum(static_cast<const float*>(p.workspace), blocks, p.columns, p.dgain,
                         stream);
}

}  // namespace evenkeel
