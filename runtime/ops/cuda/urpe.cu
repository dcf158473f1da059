// A warp takes a token: its angles are the same in all heads and are computed once. The lanes are
// cut into teams of a power of two, a team holds a head in registers, 8 elements a lane, and the
// teams walk through the heads side by side, several heads of each in flight. theta's gradient is
// summed over a lane's heads and tokens in registers, then over the block's teams in shared memory,
// then over the blocks by LaunchColumnSum.
#include <algorithm>

#include "runtime/ops/cuda/angle.cuh"
#include "runtime/ops/cuda/column_sum.h"
#include "runtime/ops/cuda/row_pieces.cuh"
#include "runtime/ops/cuda/urpe_cuda.h"

namespace evenkeel {
namespace {

using namespace row_pieces;  // NOLINT(google-build-using-namespace)

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;  // tokens of a block at a time
constexpr int kPairs = kPiece / 2;     // of a lane
constexpr int kHeads = 4;              // of a team, in flight together
constexpr int64_t kMaxGrid = int64_t{1} << 30;
// Blocks of a backward pass: a constant, so that sums have the same order on every GPU.
constexpr int64_t kSumBlocks = 4 * 132;

// A lane's place and what it keeps from token to token. kLanes: of a team.
template <int kLanes>
struct TeamLane {
  static constexpr int kTeams = 32 / kLanes;  // of a warp

  int warp = static_cast<int>(threadIdx.x) / 32;
  int team = static_cast<int>(threadIdx.x) % 32 / kLanes;
  int column = static_cast<int>(threadIdx.x) % kLanes * kPiece;
  bool inside;                 // a head may be narrower than its team
  float u[kPiece];             // the reflection's piece, zero outside
  float theta[kPairs];         // the piece's rates
  float c[kPairs], s[kPairs];  // this token's cosines and sines

  __device__ __forceinline__ TeamLane(const float* reflection, const float* rates, int head_dim)
      : inside(column < head_dim) {
#pragma unroll
    for (int j = 0; j < kPiece; ++j) u[j] = inside ? reflection[column + j] : 0.0f;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) theta[j] = inside ? rates[column / 2 + j] : 0.0f;
  }
  __device__ __forceinline__ void MoveTo(int64_t position) {
#pragma unroll
    for (int j = 0; j < kPairs; ++j) AngleOf(theta[j], position, c[j], s[j]);
  }
  // x -= 2 u (u . x), over the lanes of the team. All lanes of the warp call it.
  __device__ __forceinline__ void Reflect(float (&x)[kPiece]) const {
    float dot = 0.0f;
#pragma unroll
    for (int j = 0; j < kPiece; ++j) dot += u[j] * x[j];
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) {
      dot += __shfl_xor_sync(0xffffffffu, dot, step);
    }
#pragma unroll
    for (int j = 0; j < kPiece; ++j) x[j] -= 2.0f * dot * u[j];
  }
};

template <int kLanes>
__global__ void __launch_bounds__(kThreads) UrpeForwardKernel(const UrpeForwardParams p) {
  using Lane = TeamLane<kLanes>;
  const int heads = static_cast<int>(p.heads), dim = static_cast<int>(p.head_dim);
  Lane lane(p.reflection, p.theta, dim);
  for (int64_t t = static_cast<int64_t>(blockIdx.x) * kWarps + lane.warp; t < p.tokens;
       t += static_cast<int64_t>(gridDim.x) * kWarps) {
    lane.MoveTo(p.positions[t]);
    const Bf16* x = static_cast<const Bf16*>(p.x) + t * p.x_stride + lane.column;
    Bf16* y = static_cast<Bf16*>(p.y) + t * p.y_stride + lane.column;
    // The bound is the warp's, not the team's: all lanes take part in the sums.
    for (int first = 0; first < heads; first += kHeads * Lane::kTeams) {
      uint4 in[kHeads];
#pragma unroll
      for (int i = 0; i < kHeads; ++i) {
        const int h = first + i * Lane::kTeams + lane.team;
        in[i] = lane.inside && h < heads ? LoadPiece(x + h * dim) : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (int i = 0; i < kHeads; ++i) {
        const int h = first + i * Lane::kTeams + lane.team;
        float a[kPiece];
        Unpack(in[i], a);
        lane.Reflect(a);
#pragma unroll
        for (int j = 0; j < kPairs; ++j) {
          const float even = a[2 * j], odd = a[2 * j + 1];
          a[2 * j] = even * lane.c[j] - odd * lane.s[j];
          a[2 * j + 1] = odd * lane.c[j] + even * lane.s[j];
        }
        if (lane.inside && h < heads) StorePiece(y + h * dim, Pack(a));
      }
    }
  }
}

template <int kLanes>
__global__ void __launch_bounds__(kThreads) UrpeBackwardKernel(const UrpeBackwardParams p) {
  using Lane = TeamLane<kLanes>;
  __shared__ float sums[kWarps][Lane::kTeams][kLanes * kPairs];
  const int heads = static_cast<int>(p.heads), dim = static_cast<int>(p.head_dim);
  Lane lane(p.reflection, p.theta, dim);
  float dtheta[kPairs] = {};
  for (int64_t t = static_cast<int64_t>(blockIdx.x) * kWarps + lane.warp; t < p.tokens;
       t += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t position = p.positions[t];
    lane.MoveTo(position);
    const Bf16* y = static_cast<const Bf16*>(p.y) + t * p.y_stride + lane.column;
    const Bf16* dy = static_cast<const Bf16*>(p.dy) + t * p.dy_stride + lane.column;
    Bf16* dx = static_cast<Bf16*>(p.dx) + t * p.dx_stride + lane.column;
    float turn[kPairs] = {};  // gradient of the angles, over the token's heads
    for (int first = 0; first < heads; first += kHeads * Lane::kTeams) {
      uint4 out[kHeads], grad[kHeads];
#pragma unroll
      for (int i = 0; i < kHeads; ++i) {
        const int h = first + i * Lane::kTeams + lane.team;
        const bool valid = lane.inside && h < heads;
        out[i] = valid ? LoadPiece(y + h * dim) : make_uint4(0, 0, 0, 0);
        grad[i] = valid ? LoadPiece(dy + h * dim) : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (int i = 0; i < kHeads; ++i) {
        const int h = first + i * Lane::kTeams + lane.team;
        float a[kPiece], g[kPiece];
        Unpack(out[i], a);
        Unpack(grad[i], g);
#pragma unroll
        for (int j = 0; j < kPairs; ++j) {
          const float even = g[2 * j], odd = g[2 * j + 1];
          // d(y_even, y_odd)/da = (-y_odd, y_even)
          turn[j] += odd * a[2 * j] - even * a[2 * j + 1];
          g[2 * j] = even * lane.c[j] + odd * lane.s[j];
          g[2 * j + 1] = odd * lane.c[j] - even * lane.s[j];
        }
        lane.Reflect(g);
        if (lane.inside && h < heads) StorePiece(dx + h * dim, Pack(g));
      }
    }
#pragma unroll
    for (int j = 0; j < kPairs; ++j) dtheta[j] += static_cast<float>(position) * turn[j];
  }
#pragma unroll
  for (int j = 0; j < kPairs; ++j) sums[lane.warp][lane.team][lane.column / 2 + j] = dtheta[j];
  __syncthreads();
  // A head of this path has at most kThreads pairs.
  if (static_cast<int>(threadIdx.x) >= dim / 2) return;
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
#pragma unroll
    for (int team = 0; team < Lane::kTeams; ++team) sum += sums[w][team][threadIdx.x];
  }
  static_cast<float*>(p.workspace)[blockIdx.x * (p.head_dim / 2) + threadIdx.x] = sum;
}

// Any even head size and alignment: a block a token, a warp a head, a pair at a time.
struct PairAngle {
  float c, s;
  __device__ __forceinline__ PairAngle(float theta, int64_t position) {
    AngleOf(theta, position, c, s);
  }
};

__global__ void __launch_bounds__(kThreads) UrpeForwardAnyKernel(const UrpeForwardParams p) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const float* u = p.reflection;
  for (int64_t t = blockIdx.x; t < p.tokens; t += gridDim.x) {
    for (int64_t h = warp; h < p.heads; h += kWarps) {
      const Bf16* x = static_cast<const Bf16*>(p.x) + t * p.x_stride + h * p.head_dim;
      Bf16* y = static_cast<Bf16*>(p.y) + t * p.y_stride + h * p.head_dim;
      float dot = 0.0f;
      for (int64_t i = 2 * lane; i < p.head_dim; i += 64) {
        dot += u[i] * __bfloat162float(x[i]) + u[i + 1] * __bfloat162float(x[i + 1]);
      }
      dot = 2.0f * WarpSum(dot);
      for (int64_t i = 2 * lane; i < p.head_dim; i += 64) {
        const PairAngle at(p.theta[i / 2], p.positions[t]);
        const float even = __bfloat162float(x[i]) - dot * u[i];
        const float odd = __bfloat162float(x[i + 1]) - dot * u[i + 1];
        y[i] = __float2bfloat16(even * at.c - odd * at.s);
        y[i + 1] = __float2bfloat16(odd * at.c + even * at.s);
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads) UrpeBackwardAnyKernel(const UrpeBackwardParams p) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t half = p.head_dim / 2;
  const float* u = p.reflection;
  float* partial = static_cast<float*>(p.workspace) + blockIdx.x * half;
  for (int64_t j = threadIdx.x; j < half; j += kThreads) partial[j] = 0.0f;
  for (int64_t t = blockIdx.x; t < p.tokens; t += gridDim.x) {
    const int64_t position = p.positions[t];
    const Bf16* y = static_cast<const Bf16*>(p.y) + t * p.y_stride;
    const Bf16* dy = static_cast<const Bf16*>(p.dy) + t * p.dy_stride;
    Bf16* dx = static_cast<Bf16*>(p.dx) + t * p.dx_stride;
    for (int64_t j = threadIdx.x; j < half; j += kThreads) {
      float turn = 0.0f;
      for (int64_t h = 0; h < p.heads; ++h) {
        const int64_t i = h * p.head_dim + 2 * j;
        turn += __bfloat162float(dy[i + 1]) * __bfloat162float(y[i]) -
                __bfloat162float(dy[i]) * __bfloat162float(y[i + 1]);
      }
      partial[j] += static_cast<float>(position) * turn;
    }
    __syncthreads();  // dx may be dy
    for (int64_t h = warp; h < p.heads; h += kWarps) {
      const Bf16* in = dy + h * p.head_dim;
      Bf16* out = dx + h * p.head_dim;
      const auto turned_back = [&](int64_t i) {
        const PairAngle at(p.theta[i / 2], position);
        const float even = __bfloat162float(in[i]), odd = __bfloat162float(in[i + 1]);
        return FloatPair{even * at.c + odd * at.s, odd * at.c - even * at.s};
      };
      float dot = 0.0f;
      for (int64_t i = 2 * lane; i < p.head_dim; i += 64) {
        const FloatPair g = turned_back(i);
        dot += u[i] * g.first + u[i + 1] * g.second;
      }
      dot = 2.0f * WarpSum(dot);
      for (int64_t i = 2 * lane; i < p.head_dim; i += 64) {
        const FloatPair g = turned_back(i);
        out[i] = __float2bfloat16(g.first - dot * u[i]);
        out[i + 1] = __float2bfloat16(g.second - dot * u[i + 1]);
      }
    }
  }
}

// Calls run.operator()<kLanes>() for the team of heads of `head_dim`.
template <typename Run>
void DispatchTeam(int64_t head_dim, const Run& run) {
  const int64_t pieces = head_dim / kPiece;
  if (pieces <= 4) {
    run.template operator()<4>();
  } else if (pieces <= 8) {
    run.template operator()<8>();
  } else if (pieces <= 16) {
    run.template operator()<16>();
  } else {
    run.template operator()<32>();
  }
}

constexpr int64_t kMaxHeadDim = 32 * kPiece;  // of a team

template <typename Params>
bool SizesAreValid(const Params& p) {
  return p.tokens >= 0 && p.heads >= 0 && p.head_dim >= 0 && p.head_dim % 2 == 0;
}

}  // namespace

cudaError_t LaunchUrpeForward(const UrpeForwardParams& p, cudaStream_t stream) {
  if (!SizesAreValid(p)) return cudaErrorInvalidValue;
  if (p.tokens == 0 || p.heads == 0 || p.head_dim == 0) return cudaSuccess;
  if (HasPieces(p.x, p.x_stride, p.head_dim) && HasPieces(p.y, p.y_stride, p.head_dim) &&
      p.head_dim <= kMaxHeadDim && p.heads * p.head_dim < 1 << 30) {
    const auto blocks = static_cast<unsigned>(std::min(CeilDiv(p.tokens, kWarps), kMaxGrid));
    DispatchTeam(p.head_dim, [&]<int kLanes>() {
      UrpeForwardKernel<kLanes><<<blocks, kThreads, 0, stream>>>(p);
    });
  } else {
    const auto blocks = static_cast<unsigned>(std::min(p.tokens, kMaxGrid));
    UrpeForwardAnyKernel<<<blocks, kThreads, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

size_t UrpeBackwardWorkspaceBytes(int64_t tokens, int64_t head_dim) {
  return static_cast<size_t>(std::min(tokens, kSumBlocks) * (head_dim / 2)) * sizeof(float);
}

cudaError_t LaunchUrpeBackward(const UrpeBackwardParams& p, cudaStream_t stream) {
  if (!SizesAreValid(p)) return cudaErrorInvalidValue;
  if (p.tokens == 0 || p.heads == 0 || p.head_dim == 0) return cudaSuccess;
  int64_t blocks = std::min(p.tokens, kSumBlocks);
  if (HasPieces(p.y, p.y_stride, p.head_dim) && HasPieces(p.dy, p.dy_stride, p.head_dim) &&
      HasPieces(p.dx, p.dx_stride, p.head_dim) && p.head_dim <= kMaxHeadDim &&
      p.heads * p.head_dim < 1 << 30) {
    blocks = std::min(CeilDiv(p.tokens, kWarps), kSumBlocks);
    DispatchTeam(p.head_dim, [&]<int kLanes>() {
      UrpeBackwardKernel<kLanes><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p);
    });
  } else {
    UrpeBackwardAnyKernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p);
  }
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  return LaunchColumnSum(static_cast<const float*>(p.workspace), blocks, p.head_dim / 2, p.dtheta,
                         stream);
}

}  // namespace evenkeel
