#include <algorithm>

#include "runtime/ops/cuda/embedding_cuda.h"
#include "runtime/ops/cuda/row_pieces.cuh"

namespace evenkeel {
namespace {

using namespace row_pieces;  // NOLINT(google-build-using-namespace)

constexpr int kThreads = 256;

// A warp a token.
__global__ void __launch_bounds__(kThreads) GatherKernel(const EmbeddingForwardParams p) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (t >= p.tokens) return;
  const int64_t id = p.ids[t];
  Bf16* to = static_cast<Bf16*>(p.y) + t * p.y_stride;
  if (id < 0) {
    for (int64_t at = threadIdx.x % 32 * kPiece; at < p.columns; at += 32 * kPiece) {
      StorePiece(to + at, make_uint4(0, 0, 0, 0));
    }
    return;
  }
  const Bf16* from = static_cast<const Bf16*>(p.table) + id * p.columns;
  constexpr int kAhead = 4;
  for (int64_t first = threadIdx.x % 32 * kPiece; first < p.columns;
       first += kAhead * 32 * kPiece) {
    uint4 v[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t at = first + i * 32 * kPiece;
      if (at < p.columns) v[i] = LoadPiece(from + at);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t at = first + i * 32 * kPiece;
      if (at >= p.columns) break;
      float x[kPiece];
      Unpack(v[i], x);
#pragma unroll
      for (int j = 0; j < kPiece; ++j) x[j] *= p.scale;
      StorePiece(to + at, Pack(x));
    }
  }
}

__global__ void __launch_bounds__(kThreads) GatherAnyKernel(const EmbeddingForwardParams p) {
  for (int64_t t = blockIdx.x; t < p.tokens; t += gridDim.x) {
    const int64_t id = p.ids[t];
    const Bf16* table = static_cast<const Bf16*>(p.table);
    for (int64_t i = threadIdx.x; i < p.columns; i += kThreads) {
      const float x = id < 0 ? 0.0f : __bfloat162float(table[id * p.columns + i]) * p.scale;
      static_cast<Bf16*>(p.y)[t * p.y_stride + i] = __float2bfloat16(x);
    }
  }
}

// A block adds the rows of a piece, each thread its own columns, in the order of the plan.
__global__ void __launch_bounds__(kThreads) ScatterKernel(const EmbeddingBackwardParams p) {
  const EmbeddingPiece piece = p.plan.pieces[blockIdx.x];
  const int32_t* order = p.plan.order + piece.begin;
  float* out = piece.slot >= 0 ? static_cast<float*>(p.workspace) + piece.slot * p.columns
                               : p.dtable + piece.token * p.columns;
  const auto* dy = static_cast<const Bf16*>(p.dy);
  for (int64_t column = threadIdx.x * kPiece; column < p.columns; column += kThreads * kPiece) {
    float before[kPiece] = {};
    if (piece.slot < 0) LoadFloats(out + column, before);
    float sum[kPiece] = {};
#pragma unroll 8
    for (int i = 0; i < piece.count; ++i) {
      float x[kPiece];
      Unpack(LoadPiece(dy + order[i] * p.dy_stride + column), x);
#pragma unroll
      for (int j = 0; j < kPiece; ++j) sum[j] += x[j];
    }
#pragma unroll
    for (int j = 0; j < kPiece; ++j) sum[j] = before[j] + p.scale * sum[j];
    StoreFloats(out + column, sum);
  }
}

__global__ void __launch_bounds__(kThreads) ScatterAnyKernel(const EmbeddingBackwardParams p) {
  const EmbeddingPiece piece = p.plan.pieces[blockIdx.x];
  float* out = piece.slot >= 0 ? static_cast<float*>(p.workspace) + piece.slot * p.columns
                               : p.dtable + piece.token * p.columns;
  for (int64_t column = threadIdx.x; column < p.columns; column += kThreads) {
    float sum = 0.0f;
    for (int i = 0; i < piece.count; ++i) {
      sum += __bfloat162float(
          static_cast<const Bf16*>(p.dy)[p.plan.order[piece.begin + i] * p.dy_stride + column]);
    }
    out[column] = (piece.slot >= 0 ? 0.0f : out[column]) + p.scale * sum;
  }
}

// grid: (split, columns).
__global__ void __launch_bounds__(kThreads) AddSplitsKernel(const EmbeddingBackwardParams p) {
  const EmbeddingSplit split = p.plan.splits[blockIdx.x];
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (column >= p.columns) return;
  const float* rows = static_cast<const float*>(p.workspace) + split.slot * p.columns + column;
  float sum = 0.0f;
#pragma unroll 8
  for (int i = 0; i < split.count; ++i) sum += rows[i * p.columns];
  p.dtable[split.token * p.columns + column] += sum;
}

}  // namespace

cudaError_t LaunchEmbeddingForward(const EmbeddingForwardParams& p, cudaStream_t stream) {
  if (p.tokens < 0 || p.columns < 0 || p.tokens > int64_t{1} << 33) return cudaErrorInvalidValue;
  if (p.tokens == 0 || p.columns == 0) return cudaSuccess;
  if (HasPieces(p.table, 0, p.columns) && HasPieces(p.y, p.y_stride, p.columns)) {
    GatherKernel<<<static_cast<unsigned>(CeilDiv(p.tokens, kThreads / 32)), kThreads, 0, stream>>>(
        p);
  } else {
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(p.tokens, 1 << 30));
    GatherAnyKernel<<<blocks, kThreads, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

size_t EmbeddingBackwardWorkspaceBytes(const EmbeddingPlanView& plan, int64_t columns) {
  return static_cast<size_t>(plan.num_slots * columns) * sizeof(float);
}

cudaError_t LaunchEmbeddingBackward(const EmbeddingBackwardParams& p, cudaStream_t stream) {
  if (p.columns < 0 || p.columns > int64_t{65535} * kThreads) return cudaErrorInvalidValue;
  if (p.plan.num_pieces == 0 || p.columns == 0) return cudaSuccess;
  const auto pieces = static_cast<unsigned>(p.plan.num_pieces);
  if (HasPieces(p.dy, p.dy_stride, p.columns) && HasPieces(p.dtable, 0, p.columns)) {
    ScatterKernel<<<pieces, kThreads, 0, stream>>>(p);
  } else {
    ScatterAnyKernel<<<pieces, kThreads, 0, stream>>>(p);
  }
  if (p.plan.num_splits > 0) {
    const dim3 grid(static_cast<unsigned>(p.plan.num_splits),
                    static_cast<unsigned>(CeilDiv(p.columns, kThreads)));
    AddSplitsKernel<<<grid, kThreads, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

}  // namespace evenkeel
