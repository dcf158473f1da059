// Lightning attention, forward and backward, from three kernels; lightning_attention.cc launches
// them.
//
// A sequence is cut into segments, a segment into chunks of C = 64 rows. With rows counted from the
// start of a chunk, M_ij = lambda^(i - j) for i >= j, m the rows of the chunk, and S the state
// before it:
//   out_i = [((Q K^T) M) V]_i + lambda^(i + 1) q_i^T S
//   S    <- lambda^m S + sum_j lambda^(m - 1 - j) k_j v_j^T
// 1. SegmentStateKernel: the state every segment would have if it started from zero;
// 2. ScanStatesKernel: from those the state before every segment, segment by segment;
// 3. SegmentOutputKernel: the recurrence above, all segments at once.
//
// The gradients are the same recurrence on other operands (G_t the gradient of S_t):
//   dq_t = S_t do_t                                        (q, k, v) := (do, v, k), state S^T
//   dv_t = G_t^T k_t,  G_t = lambda G_{t+1} + q_t do_t^T   (q, k, v) := (k, q, do), time reversed
//   dk_t = G_t v_t                                         (q, k, v) := (v, do, q), time reversed
// Reversed, the sequence starts from the gradient of the final state undecayed, where the forward
// recurrence decays its initial state first. So the reversed passes carry Z = lambda G: out_i takes
// lambda^i q_i^T Z, and rows enter Z with one more lambda (`shift`). Z after the last row is the
// gradient of the initial state.
#include <cuda_runtime.h>

#include <algorithm>

#include "attention/kernels/cuda/hopper.cuh"
#include "attention/kernels/cuda/lightning_segments.h"
#include "attention/kernels/cuda/mma.cuh"
#include "attention/kernels/cuda/tile_product.cuh"

namespace evenkeel {
namespace {

constexpr int kChunk = 64;
constexpr int kColumns = 64;  // of v and out, a block
constexpr int kThreads = 128;

// A segment's rows in the order of the recurrence: row r is `first` + r `step` of the packed
// tokens.
struct Rows {
  int64_t first;
  int step;
  int count;
};

__device__ __forceinline__ Rows RowsOf(const LightningSegment& segment, bool reversed) {
  if (reversed) return {int64_t{segment.row_begin} + segment.rows - 1, -1, segment.rows};
  return {segment.row_begin, 1, segment.rows};
}

// state = decay^m state + sum_j weight_j k_j v_j^T over a chunk's m rows. The warp owns rows
// [warp kDim / 4, (warp + 1) kDim / 4) of the state.
template <int kDim>
__device__ __forceinline__ void UpdateState(float (&state)[kDim / 64][kColumns / 8][4],
                                            uint32_t k_tile, uint32_t v_tile, float log_decay,
                                            int rows, int shift, int warp, int lane,
                                            uint32_t rows_first, uint32_t cols_first) {
  const float shrink = Exp2(log_decay * rows);
#pragma unroll
  for (int m = 0; m < kDim / 64; ++m) {
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) state[m][n][e] *= shrink;
    }
  }
  const TilePart k_part = PartAt<kChunk>(k_tile, cols_first, 0, warp * (kDim / 4));
#pragma unroll
  for (int j = 0; j < kChunk; j += 16) {
    // This lane's tokens of the 16: 2 (lane % 4) and the next, and the two 8 further. Rows past the
    // end are zero in the tile; their exponent is kept from growing without bound.
    const int token = j + (lane % 4) * 2;
    float weight[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int age = rows - 1 - (token + (i & 1) + (i >> 1) * 8);
      weight[i] = Exp2(log_decay * (max(age, 0) + shift));
    }
    uint32_t a[kDim / 64][4];
#pragma unroll
    for (int m = 0; m < kDim / 64; ++m) {
      LoadMatricesTransposed(a[m], BlockAddress<kChunk>(k_part.base, k_part.lane, j, m * 16));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int pair = i >> 1;
        const float low = __uint_as_float(a[m][i] << 16) * weight[pair * 2];
        const float high = __uint_as_float(a[m][i] & 0xffff0000u) * weight[pair * 2 + 1];
        a[m][i] = PackBf16(low, high);
      }
    }
#pragma unroll
    for (int n = 0; n < kColumns / 8; n += 2) {
      uint32_t b[4];
      LoadMatricesTransposed(b, BlockAddress<kChunk>(v_tile, rows_first, j, n * 8));
#pragma unroll
      for (int m = 0; m < kDim / 64; ++m) MmaPair(state[m][n], state[m][n + 1], a[m], b);
    }
  }
}

template <int kDim>
__global__ void __launch_bounds__(kThreads)
    SegmentStateKernel(const __grid_constant__ LightningProblem problem) {
  constexpr int kKBytes = kChunk * kDim * 2, kVBytes = kChunk * kColumns * 2;
  constexpr int kStageBytes = kKBytes + kVBytes;
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t stages = SharedAddress(shared);
  const Recurrence& pass = problem.passes[blockIdx.z];
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int column_tiles = (pass.value_dim + kColumns - 1) / kColumns;
  if (static_cast<int>(blockIdx.y) >= column_tiles * problem.num_heads) return;
  const int head = blockIdx.y / column_tiles;
  const int column = blockIdx.y % column_tiles * kColumns;
  const Rows rows = RowsOf(problem.plan.segments[blockIdx.x], pass.reversed);
  const int shift = pass.reversed ? 1 : 0;
  const float log_decay = -problem.slopes[head] * kLog2E;
  const int64_t k_step = pass.k_stride * rows.step, v_step = pass.v_stride * rows.step;
  const Bf16* k = pass.k + rows.first * pass.k_stride + head * pass.key_dim;
  const Bf16* v = pass.v + rows.first * pass.v_stride + head * pass.value_dim + column;
  const int k_chunks = pass.key_dim / 8, v_chunks = (pass.value_dim - column) / 8;
  const auto load = [&](uint32_t stage, int begin) {
    LoadTile<kChunk, kDim, kThreads>(stage, k + begin * k_step, k_step, rows.count - begin,
                                     k_chunks, thread);
    LoadTile<kChunk, kColumns, kThreads>(stage + kKBytes, v + begin * v_step, v_step,
                                         rows.count - begin, v_chunks, thread);
  };
  load(stages, 0);
  CommitCopies();
  const uint32_t rows_first = LaneOffset(lane, true), cols_first = LaneOffset(lane, false);
  float state[kDim / 64][kColumns / 8][4] = {};
  uint32_t stage = stages;
  for (int begin = 0; begin < rows.count; begin += kChunk) {
    WaitForCopies<0>();
    __syncthreads();
    const uint32_t now = stage;
    stage = stages + (stages + kStageBytes - stage);
    if (begin + kChunk < rows.count) load(stage, begin + kChunk);
    CommitCopies();
    UpdateState<kDim>(state, now, now + kKBytes, log_decay, min(kChunk, rows.count - begin), shift,
                      warp, lane, rows_first, cols_first);
  }
  float* target = pass.states +
                  (int64_t{blockIdx.x} * problem.num_heads + head) * pass.key_dim * pass.value_dim;
#pragma unroll
  for (int m = 0; m < kDim / 64; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int d = warp * (kDim / 4) + m * 16 + half * 8 + lane / 4;
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        const int e = column + n * 8 + (lane % 4) * 2;
        if (d < pass.key_dim && e < pass.value_dim) {
          *reinterpret_cast<float2*>(target + d * pass.value_dim + e) =
              make_float2(state[m][n][half * 2], state[m][n][half * 2 + 1]);
        }
      }
    }
  }
}

// Folds the segments' own states in order. One thread per four elements of a state; blockIdx.x is
// document * H + head, blockIdx.z the pass.
template <StateScan kScan>
__global__ void ScanStatesKernel(const __grid_constant__ LightningProblem problem) {
  LetDependentsStart();
  WaitForEarlierGrids();
  const Recurrence& pass = problem.passes[blockIdx.z];
  const int num_heads = problem.num_heads;
  const bool reversed = pass.reversed;
  const int64_t elements = int64_t{pass.key_dim} * pass.value_dim;
  const int64_t at = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * 4;
  if (at >= elements) return;
  const int head = blockIdx.x % num_heads;
  const LightningDocument document = problem.plan.documents[blockIdx.x / num_heads];
  const float log_decay = -problem.slopes[head] * kLog2E;
  const int64_t outer = int64_t{blockIdx.x} * elements + at;
  float4 carry = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (pass.initial != nullptr) carry = *reinterpret_cast<const float4*>(pass.initial + outer);
  const int count = document.end - document.begin;
  const int own_count = kScan == StateScan::kReplaceOpen ? count - 1 : count;
  const auto place = [&](int i) {
    const int segment = reversed ? document.end - 1 - i : document.begin + i;
    return reinterpret_cast<float4*>(pass.states +
                                     (int64_t{segment} * num_heads + head) * elements + at);
  };
  // Loads run ahead of the stores, which may not be reordered with them otherwise.
  constexpr int kAhead = 8;
  for (int begin = 0; begin < count; begin += kAhead) {
    float4 own[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (begin + i < own_count) own[i] = *place(begin + i);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (begin + i >= count) break;
      if constexpr (kScan != StateScan::kLast) *place(begin + i) = carry;
      if (begin + i >= own_count) break;
      const int segment = reversed ? document.end - 1 - begin - i : document.begin + begin + i;
      const float shrink = Exp2(log_decay * problem.plan.segments[segment].rows);
      carry = make_float4(carry.x * shrink + own[i].x, carry.y * shrink + own[i].y,
                          carry.z * shrink + own[i].z, carry.w * shrink + own[i].w);
    }
  }
  if (pass.last != nullptr && (kScan != StateScan::kReplaceOpen || count == 0)) {
    *reinterpret_cast<float4*>(pass.last + outer) = carry;
  }
}

template <int kDim>
constexpr int OutputSharedBytes() {
  return 2 * (2 * kChunk * kDim * 2 + kChunk * kColumns * 2) + kDim * kColumns * 2;
}

// The warp owns 16 rows of the chunk in the products with Q, and kDim / 4 rows of the state.
template <int kDim>
__global__ void __launch_bounds__(kThreads, kDim <= 128 ? 2 : 1)
    SegmentOutputKernel(const __grid_constant__ LightningProblem problem) {
  constexpr int kKBytes = kChunk * kDim * 2, kVBytes = kChunk * kColumns * 2;
  constexpr int kStageBytes = 2 * kKBytes + kVBytes;
  constexpr int kTokenTiles = kChunk / 8, kColumnTiles = kColumns / 8;
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t stages = SharedAddress(shared);
  const uint32_t state_tile = stages + 2 * kStageBytes;
  const Recurrence& pass = problem.passes[blockIdx.z];
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int column_tiles = (pass.value_dim + kColumns - 1) / kColumns;
  if (static_cast<int>(blockIdx.y) >= column_tiles * problem.num_heads) return;
  const int head = blockIdx.y / column_tiles;
  const int column = blockIdx.y % column_tiles * kColumns;
  const Rows rows = RowsOf(problem.plan.segments[blockIdx.x], pass.reversed);
  const int shift = pass.reversed ? 1 : 0;
  const float log_decay = -problem.slopes[head] * kLog2E;
  const int64_t q_step = pass.q_stride * rows.step, k_step = pass.k_stride * rows.step;
  const int64_t v_step = pass.v_stride * rows.step, out_step = pass.out_stride * rows.step;
  const Bf16* q = pass.q + rows.first * pass.q_stride + head * pass.key_dim;
  const Bf16* k = pass.k + rows.first * pass.k_stride + head * pass.key_dim;
  const Bf16* v = pass.v + rows.first * pass.v_stride + head * pass.value_dim + column;
  Bf16* out = pass.out + rows.first * pass.out_stride + head * pass.value_dim + column;
  const int k_chunks = pass.key_dim / 8, v_chunks = (pass.value_dim - column) / 8;
  const auto load = [&](uint32_t stage, int begin) {
    const int left = rows.count - begin;
    LoadTile<kChunk, kDim, kThreads>(stage, q + begin * q_step, q_step, left, k_chunks, thread);
    LoadTile<kChunk, kDim, kThreads>(stage + kKBytes, k + begin * k_step, k_step, left, k_chunks,
                                     thread);
    LoadTile<kChunk, kColumns, kThreads>(stage + 2 * kKBytes, v + begin * v_step, v_step, left,
                                         v_chunks, thread);
  };
  load(stages, 0);
  CommitCopies();

  float state[kDim / 64][kColumnTiles][4];
  const float* source = pass.states + (int64_t{blockIdx.x} * problem.num_heads + head) *
                                          pass.key_dim * pass.value_dim;
#pragma unroll
  for (int m = 0; m < kDim / 64; ++m) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int d = warp * (kDim / 4) + m * 16 + (i >> 1) * 8 + lane / 4;
        const int e = column + n * 8 + (lane % 4) * 2 + (i & 1);
        state[m][n][i] = d < pass.key_dim && e < pass.value_dim
                             ? source[d * pass.state_key_stride + e * pass.state_value_stride]
                             : 0.0f;
      }
    }
  }
  const uint32_t rows_first = LaneOffset(lane, true), cols_first = LaneOffset(lane, false);

  uint32_t stage = stages;
  for (int begin = 0; begin < rows.count; begin += kChunk) {
    WaitForCopies<0>();
    __syncthreads();
    const uint32_t q_tile = stage, k_tile = stage + kKBytes, v_tile = stage + 2 * kKBytes;
    stage = stages + (stages + kStageBytes - stage);
    if (begin + kChunk < rows.count) load(stage, begin + kChunk);
    CommitCopies();
#pragma unroll
    for (int m = 0; m < kDim / 64; ++m) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int d = warp * (kDim / 4) + m * 16 + half * 8 + lane / 4;
          StoreShared4(state_tile + ElementOffset<kDim>(d, n * 8 + (lane % 4) * 2),
                       PackBf16(state[m][n][half * 2], state[m][n][half * 2 + 1]));
        }
      }
    }

    const TilePart q_part = PartAt<kChunk>(q_tile, rows_first, warp * 16, 0);
    float s[1][kTokenTiles][4] = {};
    AddProductNT<kChunk, kChunk, kDim>(s, q_part, PartAt<kChunk>(k_tile, cols_first, 0, 0));
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int distance =
            warp * 16 + (e >> 1) * 8 + lane / 4 - (n * 8 + (lane % 4) * 2 + (e & 1));
        s[0][n][e] = distance >= 0 ? s[0][n][e] * Exp2(log_decay * distance) : 0.0f;
      }
    }
    __syncthreads();

    float o[1][kColumnTiles][4] = {};
    AddProductNN<kChunk, kDim, kDim>(o, q_part, PartAt<kDim>(state_tile, rows_first, 0, 0));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp * 16 + half * 8 + lane / 4;
      const float decay = Exp2(log_decay * (row + 1 - shift));
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        o[0][n][half * 2] *= decay;
        o[0][n][half * 2 + 1] *= decay;
      }
    }
#pragma unroll
    for (int j = 0; j < kTokenTiles; j += 2) {
      uint32_t a[4];
      AccumulatorsAsOperand(a, s[0][j], s[0][j + 1]);
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        uint32_t b[4];
        LoadMatricesTransposed(b, BlockAddress<kChunk>(v_tile, rows_first, j * 8, n * 8));
        MmaPair(o[0][n], o[0][n + 1], a, b);
      }
    }

    // The warp's rows of Q are read by this warp alone and no more: they carry its output.
    __syncwarp();
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp * 16 + half * 8 + lane / 4;
        StoreShared4(q_tile + ElementOffset<kChunk>(row, n * 8 + (lane % 4) * 2),
                     PackBf16(o[0][n][half * 2], o[0][n][half * 2 + 1]));
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = warp * 16 + i * 4 + lane / 8, chunk = lane % 8;
      if (begin + row < rows.count && chunk < v_chunks) {
        *reinterpret_cast<uint4*>(out + (begin + row) * out_step + chunk * 8) =
            LoadShared16(q_tile + ElementOffset<kChunk>(row, chunk * 8));
      }
    }
    if (begin + kChunk < rows.count) {
      UpdateState<kDim>(state, k_tile, v_tile, log_decay, kChunk, shift, warp, lane, rows_first,
                        cols_first);
    }
  }
}

template <typename Kernel>
cudaError_t LaunchSegments(Kernel kernel, int shared_bytes, const LightningProblem& problem,
                           int num_passes, int column_tiles, cudaStream_t stream) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(problem.plan.num_segments),
                  static_cast<unsigned>(problem.num_heads * column_tiles),
                  static_cast<unsigned>(num_passes));
  kernel<<<grid, kThreads, shared_bytes, stream>>>(problem);
  return cudaGetLastError();
}

template <int kDim>
constexpr int StateSharedBytes() {
  return 2 * (kChunk * kDim * 2 + kChunk * kColumns * 2);
}

}  // namespace

int LightningPaddedDim(int dim) {
  return dim <= 64 ? 64 : dim <= 128 ? 128 : 256;
}

int LightningColumnTiles(int value_dim) {
  return (value_dim + kColumns - 1) / kColumns;
}

cudaError_t LaunchSegmentStates(const LightningProblem& problem, int num_passes, int column_tiles,
                                cudaStream_t stream) {
  switch (LightningPaddedDim(problem.passes[0].key_dim)) {
    case 64:
      return LaunchSegments(SegmentStateKernel<64>, StateSharedBytes<64>(), problem, num_passes,
                            column_tiles, stream);
    case 128:
      return LaunchSegments(SegmentStateKernel<128>, StateSharedBytes<128>(), problem, num_passes,
                            column_tiles, stream);
    default:
      return LaunchSegments(SegmentStateKernel<256>, StateSharedBytes<256>(), problem, num_passes,
                            column_tiles, stream);
  }
}

cudaError_t LaunchScanStates(const LightningProblem& problem, int num_passes, StateScan scan,
                             bool early, cudaStream_t stream) {
  const int elements = problem.passes[0].key_dim * problem.passes[0].value_dim;
  const int64_t states = problem.plan.num_documents * problem.num_heads;
  if (states > INT32_MAX) return cudaErrorInvalidValue;
  const dim3 grid(static_cast<unsigned>(states), static_cast<unsigned>((elements / 4 + 127) / 128),
                  static_cast<unsigned>(num_passes));
  const auto kernel = scan == StateScan::kReplace       ? ScanStatesKernel<StateScan::kReplace>
                      : scan == StateScan::kReplaceOpen ? ScanStatesKernel<StateScan::kReplaceOpen>
                                                        : ScanStatesKernel<StateScan::kLast>;
  return LaunchKernel(kernel, grid, 128, 0, {.early = early}, stream, problem);
}

cudaError_t LaunchSegmentOutputs(const LightningProblem& problem, int num_passes, int column_tiles,
                                 cudaStream_t stream) {
  switch (LightningPaddedDim(problem.passes[0].key_dim)) {
    case 64:
      return LaunchSegments(SegmentOutputKernel<64>, OutputSharedBytes<64>(), problem, num_passes,
                            column_tiles, stream);
    case 128:
      return LaunchSegments(SegmentOutputKernel<128>, OutputSharedBytes<128>(), problem, num_passes,
                            column_tiles, stream);
    default:
      return LaunchSegments(SegmentOutputKernel<256>, OutputSharedBytes<256>(), problem, num_passes,
                            column_tiles, stream);
  }
}

}  // namespace evenkeel
