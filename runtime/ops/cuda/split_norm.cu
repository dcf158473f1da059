// A team of threads takes a row: a warp for short rows, eight warps for long ones. A thread takes
// every kThreads-th unit of the row (8 elements; one where rows are odd), two or four loads of each
// operand in flight.
#include <algorithm>

#include "runtime/ops/cuda/row_pieces.cuh"
#include "runtime/ops/cuda/split_norm_cuda.h"

namespace evenkeel {
namespace {

using namespace row_pieces;  // NOLINT(google-build-using-namespace)

template <int kWarpsIn, int kWidthIn>
struct Team {
  static constexpr int kWarps = kWarpsIn;
  static constexpr int kWidth = kWidthIn;
  static constexpr int kTeams = kWarps == 1 ? 4 : 1;  // in a block
  static constexpr int kThreads = 32 * kWarps;        // in a team
  static constexpr int kBlock = kThreads * kTeams;
  using Io = Unit<kWidth>;

  static __device__ __forceinline__ int64_t FirstRow() {
    return static_cast<int64_t>(blockIdx.x) * kTeams + threadIdx.x / kThreads;
  }
  static __device__ __forceinline__ int64_t RowStep() {
    return static_cast<int64_t>(gridDim.x) * kTeams;
  }
};

// Calls load(i, column) for the next kAhead units of this thread, then body(i, column) for the
// same, until the row is done.
template <typename T, int kAhead, typename Load, typename Body>
__device__ __forceinline__ void ForEachUnit(int64_t columns, const Load& load, const Body& body) {
  constexpr int64_t kStep = int64_t{T::kThreads} * T::kWidth;
  for (int64_t first = threadIdx.x % T::kThreads * T::kWidth; first < columns;
       first += kAhead * kStep) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i * kStep < columns) load(i, first + i * kStep);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i * kStep < columns) body(i, first + i * kStep);
    }
  }
}

__device__ __forceinline__ float InverseRms(const SplitNormRows& p, int64_t row) {
  return 1.0f / sqrtf(p.sums[row] / p.all_columns + p.eps);
}

__device__ __forceinline__ const Bf16* RowOf(const void* p, int64_t stride, int64_t row) {
  return static_cast<const Bf16*>(p) + row * stride;
}
__device__ __forceinline__ Bf16* RowOf(void* p, int64_t stride, int64_t row) {
  return static_cast<Bf16*>(p) + row * stride;
}

template <typename T>
__global__ void __launch_bounds__(T::kBlock) RowSquaresKernel(const RowSquaresParams p) {
  using Io = typename T::Io;
  __shared__ float scratch[T::kWarps];
  for (int64_t row = T::FirstRow(); row < p.tokens; row += T::RowStep()) {
    const Bf16* x = RowOf(p.x, p.x_stride, row);
    constexpr int kAhead = 4;
    typename Io::Packed v[kAhead];
    float sum = 0.0f;
    ForEachUnit<T, kAhead>(
        p.columns, [&](int i, int64_t column) { v[i] = Io::Load(x + column); },
        [&](int i, int64_t) {
          float a[T::kWidth];
          Io::Open(v[i], a);
#pragma unroll
          for (int j = 0; j < T::kWidth; ++j) sum += a[j] * a[j];
        });
    sum = TeamSum<T::kWarps>(sum, scratch);
    if (threadIdx.x % T::kThreads == 0) p.sums[row] = sum;
  }
}

template <typename T>
__global__ void __launch_bounds__(T::kBlock) ForwardKernel(const SplitNormForwardParams p) {
  using Io = typename T::Io;
  const bool gated = p.rows.gate != nullptr;
  for (int64_t row = T::FirstRow(); row < p.rows.tokens; row += T::RowStep()) {
    const Bf16* x = RowOf(p.rows.x, p.rows.x_stride, row);
    const Bf16* gate = RowOf(p.rows.gate, p.rows.gate_stride, row);
    Bf16* y = RowOf(p.y, p.y_stride, row);
    const float r = InverseRms(p.rows, row);
    constexpr int kAhead = 4;
    typename Io::Packed v[kAhead], m[kAhead];
    ForEachUnit<T, kAhead>(
        p.rows.columns,
        [&](int i, int64_t column) {
          v[i] = Io::Load(x + column);
          if (gated) m[i] = Io::Load(gate + column);
        },
        [&](int i, int64_t column) {
          float a[T::kWidth], g[T::kWidth];
          Io::Open(v[i], a);
          if (gated) Io::Open(m[i], g);
#pragma unroll
          for (int j = 0; j < T::kWidth; ++j) a[j] *= gated ? r * g[j] : r;
          Io::Store(y + column, a);
        });
  }
}

template <typename T>
__global__ void __launch_bounds__(T::kBlock) DotsKernel(const SplitNormDotsParams p) {
  using Io = typename T::Io;
  __shared__ float scratch[T::kWarps];
  const bool gated = p.rows.gate != nullptr;
  for (int64_t row = T::FirstRow(); row < p.rows.tokens; row += T::RowStep()) {
    const Bf16* x = RowOf(p.rows.x, p.rows.x_stride, row);
    const Bf16* gate = RowOf(p.rows.gate, p.rows.gate_stride, row);
    const Bf16* dy = RowOf(p.dy, p.dy_stride, row);
    constexpr int kAhead = 2;
    typename Io::Packed v[kAhead], m[kAhead], w[kAhead];
    float sum = 0.0f;
    ForEachUnit<T, kAhead>(
        p.rows.columns,
        [&](int i, int64_t column) {
          v[i] = Io::Load(x + column);
          w[i] = Io::Load(dy + column);
          if (gated) m[i] = Io::Load(gate + column);
        },
        [&](int i, int64_t) {
          float a[T::kWidth], d[T::kWidth], g[T::kWidth];
          Io::Open(v[i], a);
          Io::Open(w[i], d);
          if (gated) Io::Open(m[i], g);
#pragma unroll
          for (int j = 0; j < T::kWidth; ++j) sum += a[j] * (gated ? d[j] * g[j] : d[j]);
        });
    sum = TeamSum<T::kWarps>(sum, scratch);
    if (threadIdx.x % T::kThreads == 0) p.dots[row] = sum * InverseRms(p.rows, row);
  }
}

template <typename T>
__global__ void __launch_bounds__(T::kBlock) BackwardKernel(const SplitNormBackwardParams p) {
  using Io = typename T::Io;
  const bool gated = p.rows.gate != nullptr;
  for (int64_t row = T::FirstRow(); row < p.rows.tokens; row += T::RowStep()) {
    const Bf16* x = RowOf(p.rows.x, p.rows.x_stride, row);
    const Bf16* gate = RowOf(p.rows.gate, p.rows.gate_stride, row);
    const Bf16* dy = RowOf(p.dy, p.dy_stride, row);
    Bf16* dx = RowOf(p.dx, p.dx_stride, row);
    Bf16* dgate = RowOf(p.dgate, p.dgate_stride, row);
    const float r = InverseRms(p.rows, row), mean = p.dots[row] / p.rows.all_columns;
    constexpr int kAhead = 2;
    typename Io::Packed v[kAhead], m[kAhead], w[kAhead];
    ForEachUnit<T, kAhead>(
        p.rows.columns,
        [&](int i, int64_t column) {
          v[i] = Io::Load(x + column);
          w[i] = Io::Load(dy + column);
          if (gated) m[i] = Io::Load(gate + column);
        },
        [&](int i, int64_t column) {
          float a[T::kWidth], d[T::kWidth];
          Io::Open(v[i], a);
          Io::Open(w[i], d);
#pragma unroll
          for (int j = 0; j < T::kWidth; ++j) a[j] *= r;
          if (gated) {
            float g[T::kWidth], dg[T::kWidth];
            Io::Open(m[i], g);
#pragma unroll
            for (int j = 0; j < T::kWidth; ++j) {
              dg[j] = d[j] * a[j];
              d[j] *= g[j];
            }
            Io::Store(dgate + column, dg);
          }
#pragma unroll
          for (int j = 0; j < T::kWidth; ++j) d[j] = r * (d[j] - a[j] * mean);
          Io::Store(dx + column, d);
        });
  }
}

// Calls run.operator()<Team>(blocks) for the team of rows of `columns`, which consist of whole
// pieces or not.
template <typename Run>
cudaError_t DispatchTeam(int64_t tokens, int64_t columns, bool pieces, const Run& run) {
  if (tokens < 0 || columns < 0) return cudaErrorInvalidValue;
  if (tokens == 0) return cudaSuccess;
  constexpr int64_t kMaxGrid = int64_t{1} << 30, kWarpColumns = 256 * kPiece;
  const auto launch = [&]<typename T>() {
    run.template operator()<T>(
        static_cast<unsigned>(std::min(CeilDiv(tokens, T::kTeams), kMaxGrid)));
  };
  if (!pieces) {
    launch.template operator()<Team<8, 1>>();
  } else if (columns <= kWarpColumns) {
    launch.template operator()<Team<1, kPiece>>();
  } else {
    launch.template operator()<Team<8, kPiece>>();
  }
  return cudaGetLastError();
}

bool RowsHavePieces(const SplitNormRows& p) {
  return HasPieces(p.x, p.x_stride, p.columns) && HasPieces(p.gate, p.gate_stride, p.columns);
}

}  // namespace

cudaError_t LaunchRowSquares(const RowSquaresParams& p, cudaStream_t stream) {
  const bool pieces = HasPieces(p.x, p.x_stride, p.columns);
  return DispatchTeam(p.tokens, p.columns, pieces, [&]<typename T>(unsigned blocks) {
    RowSquaresKernel<T><<<blocks, T::kBlock, 0, stream>>>(p);
  });
}

cudaError_t LaunchSplitNormForward(const SplitNormForwardParams& p, cudaStream_t stream) {
  if (p.rows.columns == 0) return cudaSuccess;
  const bool pieces = RowsHavePieces(p.rows) && HasPieces(p.y, p.y_stride, p.rows.columns);
  return DispatchTeam(p.rows.tokens, p.rows.columns, pieces, [&]<typename T>(unsigned blocks) {
    ForwardKernel<T><<<blocks, T::kBlock, 0, stream>>>(p);
  });
}

cudaError_t LaunchSplitNormDots(const SplitNormDotsParams& p, cudaStream_t stream) {
  const bool pieces = RowsHavePieces(p.rows) && HasPieces(p.dy, p.dy_stride, p.rows.columns);
  return DispatchTeam(p.rows.tokens, p.rows.columns, pieces, [&]<typename T>(unsigned blocks) {
    DotsKernel<T><<<blocks, T::kBlock, 0, stream>>>(p);
  });
}

cudaError_t LaunchSplitNormBackward(const SplitNormBackwardParams& p, cudaStream_t stream) {
  if (p.rows.tokens == 0 || p.rows.columns == 0) return cudaSuccess;
  if ((p.rows.gate == nullptr) != (p.dgate == nullptr)) return cudaErrorInvalidValue;
  const int64_t columns = p.rows.columns;
  const bool pieces = RowsHavePieces(p.rows) && HasPieces(p.dy, p.dy_stride, columns) &&
                      HasPieces(p.dx, p.dx_stride, columns) &&
                      HasPieces(p.dgate, p.dgate_stride, columns);
  return DispatchTeam(p.rows.tokens, columns, pieces, [&]<typename T>(unsigned blocks) {
    BackwardKernel<T><<<blocks, T::kBlock, 0, stream>>>(p);
  });
}

}  // namespace evenkeel
