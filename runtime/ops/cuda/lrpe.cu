// Every token, head and dimension has an angle of its own, and a sine costs more than the memory
// traffic of its element. A thread keeps 8 dimensions of a head (theta's cosine and sine with them)
// and walks through neighbouring tokens: where positions count up, one rotation by theta gives the
// next angle. Where a walk or a document begins, and at every 32nd position, the angle is computed
// anew, from theta p in float64: after at most 31 rotations its float32 error is below 4e-6, a
// thousandth of what the output's rounding adds.
#include <algorithm>

#include "runtime/ops/cuda/activation_functions.cuh"
#include "runtime/ops/cuda/angle.cuh"
#include "runtime/ops/cuda/column_sum.h"
#include "runtime/ops/cuda/position_cuda.h"
#include "runtime/ops/cuda/row_pieces.cuh"

namespace evenkeel {
namespace {

using namespace row_pieces;  // NOLINT(google-build-using-namespace)

constexpr int kThreads = 128;
constexpr int kAhead = 4;     // tokens whose loads are in flight together
constexpr int kRefresh = 32;  // positions between angles that are computed anew
// Blocks of a launch, about: all of them are resident on the largest Hopper at once, so that none
// is left over for a last, nearly empty wave. Constants, so that sums have the same order on every
// GPU.
constexpr int64_t kForwardBlocks = 6 * 132;
constexpr int64_t kBackwardBlocks = 5 * 132;

int64_t ColumnBlocks(int64_t columns, int width) {
  return CeilDiv(columns, kThreads * width);
}

// Tokens of a thread.
int64_t WalkOf(int64_t tokens, int64_t column_blocks, bool backward) {
  const int64_t blocks = backward ? kBackwardBlocks : kForwardBlocks;
  return std::max<int64_t>(CeilDiv(CeilDiv(tokens * column_blocks, blocks), kAhead) * kAhead, 8);
}

// kWidth neighbouring angles, walking through positions.
template <int kWidth>
struct Angles {
  const float* theta = nullptr;  // [kWidth]; read again where a document begins
  float c[kWidth], s[kWidth], step_c[kWidth], step_s[kWidth];
  int64_t position = -2;  // none is one less than any

  __device__ __forceinline__ void Start(const float* rates) {
    theta = rates;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) AngleOf(theta[j], 1, step_c[j], step_s[j]);
  }
  __device__ __forceinline__ void MoveTo(int64_t to) {
    if (to == position + 1 && to % kRefresh != 0) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const float turned = c[j] * step_c[j] - s[j] * step_s[j];
        s[j] = s[j] * step_c[j] + c[j] * step_s[j];
        c[j] = turned;
      }
    } else {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) AngleOf(theta[j], to, c[j], s[j]);
    }
    position = to;
  }
};

// The thread's place: columns [column, column + kWidth) of x, and where they stand in y.
struct Columns {
  int64_t x;
  int64_t y;
};

template <int kWidth>
__device__ __forceinline__ Columns ColumnsOf(const LrpeParams& p) {
  const auto column =
      (static_cast<uint32_t>(blockIdx.y) * kThreads + threadIdx.x) * static_cast<uint32_t>(kWidth);
  const auto dim = static_cast<uint32_t>(p.head_dim);
  return {column, int64_t{column / dim} * 2 * dim + column % dim};
}

template <Activation kActivation, int kWidth>
__global__ void __launch_bounds__(kThreads, 6) LrpeForwardKernel(const LrpeParams p, int64_t walk) {
  using Io = Unit<kWidth>;
  const Columns at = ColumnsOf<kWidth>(p);
  if (at.x >= p.heads * p.head_dim) return;
  Angles<kWidth> angles;
  angles.Start(p.theta + at.x);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * walk;
#pragma unroll 1
  for (int64_t first = begin; first < begin + walk; first += kAhead) {
    typename Io::Packed in[kAhead];
    int64_t positions[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i < p.tokens) {
        positions[i] = p.positions[first + i];
        in[i] = Io::Load(static_cast<const Bf16*>(p.x) + (first + i) * p.x_stride + at.x);
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t t = first + i;
      if (t >= p.tokens) return;
      angles.MoveTo(positions[i]);
      float a[kWidth], y_cos[kWidth], y_sin[kWidth];
      Io::Open(in[i], a);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const float value = Activate<kActivation>(a[j]);
        y_cos[j] = value * angles.c[j];
        y_sin[j] = value * angles.s[j];
      }
      Bf16* y = static_cast<Bf16*>(p.y) + t * p.y_stride + at.y;
      Io::Store(y, y_cos);
      Io::Store(y + p.head_dim, y_sin);
    }
  }
}

template <Activation kActivation, int kWidth>
__global__ void __launch_bounds__(kThreads, 5)
    LrpeBackwardKernel(const LrpeParams p, int64_t walk) {
  using Io = Unit<kWidth>;
  constexpr int kLoads = kAhead / 2;  // three of a token
  const Columns at = ColumnsOf<kWidth>(p);
  if (at.x >= p.heads * p.head_dim) return;
  Angles<kWidth> angles;
  angles.Start(p.theta + at.x);
  float dtheta[kWidth] = {};
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * walk;
#pragma unroll 1
  for (int64_t first = begin; first < begin + walk && first < p.tokens; first += kLoads) {
    typename Io::Packed in[kLoads], in_cos[kLoads], in_sin[kLoads];
    int64_t positions[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (first + i >= p.tokens) continue;
      positions[i] = p.positions[first + i];
      in[i] = Io::Load(static_cast<const Bf16*>(p.x) + (first + i) * p.x_stride + at.x);
      const Bf16* dy = static_cast<const Bf16*>(p.dy) + (first + i) * p.dy_stride + at.y;
      in_cos[i] = Io::Load(dy);
      in_sin[i] = Io::Load(dy + p.head_dim);
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t t = first + i;
      if (t >= p.tokens) continue;
      angles.MoveTo(positions[i]);
      const auto position = static_cast<float>(angles.position);
      float a[kWidth], dc[kWidth], ds[kWidth];
      Io::Open(in[i], a);
      Io::Open(in_cos[i], dc);
      Io::Open(in_sin[i], ds);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        float value, derivative;
        ActivateWithDerivative<kActivation>(a[j], value, derivative);
        dtheta[j] += position * value * (ds[j] * angles.c[j] - dc[j] * angles.s[j]);
        a[j] = derivative * (dc[j] * angles.c[j] + ds[j] * angles.s[j]);
      }
      Io::Store(static_cast<Bf16*>(p.dx) + t * p.dx_stride + at.x, a);
    }
  }
  float* partial = static_cast<float*>(p.workspace) + blockIdx.x * p.heads * p.head_dim + at.x;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) partial[j] = dtheta[j];
}

// Whether a thread takes 8 elements rather than one.
bool HasPieces(const LrpeParams& p) {
  using row_pieces::HasPieces;
  return HasPieces(p.x, p.x_stride, p.head_dim) && HasPieces(p.y, p.y_stride, p.head_dim) &&
         HasPieces(p.dy, p.dy_stride, p.head_dim) && HasPieces(p.dx, p.dx_stride, p.head_dim);
}

template <Activation kActivation, int kWidth>
void Run(const LrpeParams& p, bool backward, cudaStream_t stream) {
  const int64_t column_blocks = ColumnBlocks(p.heads * p.head_dim, kWidth);
  const int64_t walk = WalkOf(p.tokens, column_blocks, backward);
  const dim3 grid(static_cast<unsigned>(CeilDiv(p.tokens, walk)),
                  static_cast<unsigned>(column_blocks));
  if (backward) {
    LrpeBackwardKernel<kActivation, kWidth><<<grid, kThreads, 0, stream>>>(p, walk);
  } else {
    LrpeForwardKernel<kActivation, kWidth><<<grid, kThreads, 0, stream>>>(p, walk);
  }
}

template <Activation kActivation>
void RunWidth(const LrpeParams& p, bool backward, cudaStream_t stream) {
  if (HasPieces(p)) {
    Run<kActivation, kPiece>(p, backward, stream);
  } else {
    Run<kActivation, 1>(p, backward, stream);
  }
}

cudaError_t Launch(const LrpeParams& p, bool backward, cudaStream_t stream) {
  // 65535 blocks of kThreads elements is the second dimension of a grid.
  if (p.tokens < 0 || p.heads < 0 || p.head_dim < 0 ||
      p.heads * p.head_dim > int64_t{65535} * kThreads) {
    return cudaErrorInvalidValue;
  }
  if (p.tokens == 0 || p.heads == 0 || p.head_dim == 0) return cudaSuccess;
  switch (p.activation) {
    case Activation::kSilu:
      RunWidth<Activation::kSilu>(p, backward, stream);
      break;
    case Activation::kElu:
      RunWidth<Activation::kElu>(p, backward, stream);
      break;
    case Activation::kOneElu:
      RunWidth<Activation::kOneElu>(p, backward, stream);
      break;
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchLrpeForward(const LrpeParams& params, cudaStream_t stream) {
  return Launch(params, false, stream);
}

size_t LrpeBackwardWorkspaceBytes(int64_t tokens, int64_t heads, int64_t head_dim) {
  // Walks of 8 elements a thread are the shorter ones.
  const int64_t walk = WalkOf(tokens, ColumnBlocks(heads * head_dim, kPiece), true);
  return static_cast<size_t>(CeilDiv(tokens, walk) * heads * head_dim) * sizeof(float);
}

cudaError_t LaunchLrpeBackward(const LrpeParams& p, cudaStream_t stream) {
  if (const cudaError_t error = Launch(p, true, stream); error != cudaSuccess) return error;
  const int64_t columns = p.heads * p.head_dim;
  const int64_t walk =
      WalkOf(p.tokens, ColumnBlocks(columns, HasPieces(p) ? kPiece : 1), /*backward=*/true);
  return LaunchColumnSum(static_cast<const float*>(p.workspace), CeilDiv(p.tokens, walk), columns,
                         p.dtheta, stream);
}

}  // namespace evenkeel
