// Outputs of segments on Hopper. The copy of the state in bf16, which the products with Q read, is
// the only thing that passes between the warpgroups.
#include "attention/kernels/cuda/lightning_sm90.cuh"

namespace evenkeel {
namespace {

using namespace lightning_sm90;  // NOLINT(google-build-using-namespace)

// Tiles start at multiples of 1024 bytes; the base of shared memory need not.
constexpr int kSharedBytes = 1024 + 2 * 3 * kTileBytes + kDim * kDim * 2;

#if defined(EK_HAS_SM90A)

// Named barriers, one for each warpgroup.
constexpr int kStateReadBarrier = kConsumersBarrier + 1;
constexpr int kWarpgroupBarrier = kConsumersBarrier + 3;

struct Barriers {
  uint64_t q_full[2], q_empty[2], k_full[2], k_empty[2], v_full[2], v_empty[2];
};

struct Tiles {
  uint32_t q, k, v, state;  // of the first three, two stages each
};

__device__ __forceinline__ void Produce(const Work& work, const PassMaps& maps, Barriers& b,
                                        const Tiles& tiles) {
  RingPlace place;
  const auto load = [&](uint32_t tile, const CUtensorMap* map, uint64_t& full, uint64_t& empty,
                        int row) {
    WaitBarrier(SharedAddress(&empty), place.parity ^ 1);
    ArriveExpectingBytes(SharedAddress(&full), kTileBytes);
    StartTile(tile + place.stage * kTileBytes, map, SharedAddress(&full), work.head, row);
  };
  const int chunks = work.chunks();
  for (int i = 0; i < chunks; ++i) {
    const int row = work.segment.row_begin + work.chunk(i) * kRows;
    const int s = place.stage;
    load(tiles.k, &maps.k, b.k_full[s], b.k_empty[s], row);
    load(tiles.q, &maps.q, b.q_full[s], b.q_empty[s], row);
    load(tiles.v, &maps.v, b.v_full[s], b.v_empty[s], row);
    place.Advance();
  }
}

// Accumulators, rounded.
__device__ __forceinline__ void RoundPairs(uint32_t (&rounded)[kDim / 4],
                                           const float (&x)[kDim / 2]) {
#pragma unroll
  for (int i = 0; i < kDim / 4; ++i) rounded[i] = PackBf16(x[i * 2], x[i * 2 + 1]);
}

// The warp's 16 rows of a tile.
__device__ __forceinline__ void StoreRows(uint32_t tile, const uint32_t (&rounded)[kDim / 4],
                                          const Place& at) {
  const TilePart part = PartAt<kRows>(tile, at.rows_first, at.first_row, 0);
#pragma unroll
  for (int n = 0; n < kDim / 16; ++n) {
    StoreMatrices(BlockAddress<kRows>(part.base, part.lane, 0, n * 16), rounded[n * 4],
                  rounded[n * 4 + 1], rounded[n * 4 + 2], rounded[n * 4 + 3]);
  }
}

// One warpgroup's 64 rows of every chunk. kBoth: they see all columns of the chunk, otherwise only
// the 64 on the diagonal.
template <bool kReversed, bool kBoth>
__device__ __forceinline__ void Consume(const LightningProblem& problem, const Work& work,
                                        Barriers& b, const Tiles& tiles) {
  constexpr int kConsumer = kReversed == kBoth ? 0 : 1;  // which warpgroup it is
  constexpr int kBlocks = kBoth ? 2 : 1;
  constexpr int kFirstColumn = kBoth ? 0 : kConsumer * 64;
  const Place at = PlaceOf(kConsumer);
  const Recurrence& pass = *work.pass;
  const int lane = at.lane;
  const int row = at.first_row + lane / 4;  // and 8 further, in a chunk and in the state
  const int pair = lane % 4 * 2;            // column of the first of two, in 8
  const float log_decay = work.log_decay;
  const LightningDocument document = problem.plan.documents[work.segment.document];
  const bool first = work.index == (kReversed ? document.end - 1 : document.begin);
  const bool last = work.index == (kReversed ? document.begin : document.end - 1);
  // Where this thread writes 8 elements of every second row of the warp.
  const int out_row = at.first_row + lane / 16, out_column = lane % 16 * 8;
  Bf16* const out = pass.out + (int64_t{work.segment.row_begin} + out_row) * pass.out_stride +
                    work.head * kDim + out_column;

  WaitForEarlierGrids();
  float state[kDim / 2];
  if (first && pass.initial == nullptr) {
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) state[i] = 0.0f;
  } else {
    const float* source = pass.states +
                          (int64_t{work.index} * problem.num_heads + work.head) * kDim * kDim +
                          row * pass.state_key_stride + pair * pass.state_value_stride;
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) {
      state[i] = source[(i >> 1 & 1) * 8 * pass.state_key_stride +
                        (i / 4 * 8 + (i & 1)) * pass.state_value_stride];
    }
  }

  // What one warpgroup tells the other: that it no longer reads the state in shared memory.
  NamedBarrierArrive(kStateReadBarrier + 1 - kConsumer, kConsumerThreads);
  RingPlace place;
  const int chunks = work.chunks();
  for (int i = 0; i < chunks; ++i) {
    const int chunk = work.chunk(i);
    const int rows = min(kRows, work.segment.rows - chunk * kRows);
    const int s = place.stage;
    const uint32_t q_tile = tiles.q + s * kTileBytes, k_tile = tiles.k + s * kTileBytes;
    const uint32_t v_tile = tiles.v + s * kTileBytes;

    uint32_t rounded[kDim / 4];
    RoundPairs(rounded, state);
    WaitBarrier(SharedAddress(&b.k_full[s]), place.parity);
    if (rows < kRows) {
      WaitBarrier(SharedAddress(&b.v_full[s]), place.parity);
      ZeroRowsPast(rows, k_tile, v_tile);
      FenceSharedForAsync();
      NamedBarrierSync(kConsumersBarrier, kConsumerThreads);
    }
    WaitBarrier(SharedAddress(&b.q_full[s]), place.parity);
    const uint32_t q_rows = q_tile + kConsumer * 64 * 128;
    float scores[kBlocks][32], o[kDim / 2];
    WgmmaFence();
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
      for (int d = 0; d < kDim; d += 16) {
        const uint32_t within = d / 64 * (kRows * 128) + (d % 64) * 2;
        Wgmma(scores[n], OperandDescriptor(q_rows + within, 16),
              OperandDescriptor(k_tile + (kFirstColumn + n * 64) * 128 + within, 16), d > 0);
      }
    }
    WgmmaCommit();

    // Q S from the state in bf16, once the other warpgroup no longer reads the one before.
    NamedBarrierSync(kStateReadBarrier + kConsumer, kConsumerThreads);
    StoreRows(tiles.state, rounded, at);
    FenceSharedForAsync();
    NamedBarrierSync(kConsumersBarrier, kConsumerThreads);
    WgmmaFence();
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      const uint32_t within = d / 64 * (kRows * 128) + (d % 64) * 2;
      WgmmaRowMajorB(o, OperandDescriptor(q_rows + within, 16),
                     OperandDescriptor(tiles.state + d * 128, kDim * 128), d > 0);
    }
    WgmmaCommit();

    // While Q S is computed: the scores decayed.
    WgmmaWait<1>();
    uint32_t p[kBlocks * 4][4];
    // Rows between the lane's first row and first column, in the order of the recurrence, and their
    // decay. The compiler is kept from computing all decays ahead of the loop: it has no registers
    // for them.
    constexpr float kForward = kReversed ? -1.0f : 1.0f;
    float apart = kForward * static_cast<float>(row - kFirstColumn - pair);
    asm volatile("" : "+f"(apart));
    const float log_apart = log_decay * apart;
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
      for (int j = 0; j < 32; ++j) {
        const float ahead =
            kForward * static_cast<float>(n * 64 + j / 4 * 8 + (j & 1) - (j >> 1 & 1) * 8);
        scores[n][j] *= Exp2(log_apart - log_decay * ahead);
        const bool diagonal = kFirstColumn + n * 64 == kConsumer * 64;
        if (diagonal && apart < ahead) scores[n][j] = 0.0f;
      }
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        uint32_t& packed = p[n * 4 + j / 4][j % 4];
        packed = PackBf16(scores[n][j * 2], scores[n][j * 2 + 1]);
        asm volatile("" : "+r"(packed));  // here, not after the wait
      }
    }
    WgmmaWait<0>();
    NamedBarrierArrive(kStateReadBarrier + 1 - kConsumer, kConsumerThreads);

    // out = decayed Q S + scores V.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + half * 8;
      const float decay =
          Exp2(log_decay * static_cast<float>(kReversed ? max(rows - 1 - r, 0) : r + 1));
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        o[n * 4 + half * 2] *= decay;
        o[n * 4 + half * 2 + 1] *= decay;
      }
    }
    WaitBarrier(SharedAddress(&b.v_full[s]), place.parity);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < kBlocks * 4; ++k) {
      WgmmaRowMajorB(o, p[k],
                     OperandDescriptor(v_tile + (kFirstColumn + k * 16) * 128, kRows * 128));
    }
    WgmmaCommit();

    // The state, the half that comes first in the recurrence first.
    uint32_t keys[2][kHalf / 16][4];
    const Half halves[2] = {Half(kReversed ? 1 : 0, rows), Half(kReversed ? 0 : 1, rows)};
    const auto shrink_state = [&](const Half& half) {
      const float shrink = Exp2(log_decay * static_cast<float>(half.rows));
#pragma unroll
      for (int j = 0; j < kDim / 2; ++j) state[j] *= shrink;
    };
    LoadWeightedKeys<kReversed>(keys[0], k_tile, at, halves[0], log_decay);
    shrink_state(halves[0]);
    StartStateUpdate(state, keys[0], v_tile, halves[0]);
    LoadWeightedKeys<kReversed>(keys[1], k_tile, at, halves[1], log_decay);

    // The warpgroup's rows of Q carry its output while the state is computed.
    WgmmaWait<1>();
    NamedBarrierSync(kWarpgroupBarrier + kConsumer, 128);
    RoundPairs(rounded, o);
    StoreRows(q_tile, rounded, at);
    FenceSharedForAsync();
    WgmmaWait<0>();
    shrink_state(halves[1]);
    StartStateUpdate(state, keys[1], v_tile, halves[1]);
    // What has been read of a tile is in use before the tile is let go of.
    Release(b.k_empty[s], lane);
    uint4 written[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      written[j] = LoadShared16(q_tile + ElementOffset<kRows>(out_row + j * 2, out_column));
    }
    Bf16* target = out + chunk * kRows * pass.out_stride;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (out_row + j * 2 < rows) *reinterpret_cast<uint4*>(target) = written[j];
      target += 2 * pass.out_stride;
    }
    Release(b.q_empty[s], lane);
    WgmmaWait<0>();
    Release(b.v_empty[s], lane);
    place.Advance();
  }
  NamedBarrierSync(kStateReadBarrier + kConsumer, kConsumerThreads);
  if (last && pass.last != nullptr) {
    StoreState(
        pass.last + (int64_t{work.segment.document} * problem.num_heads + work.head) * kDim * kDim,
        state, at);
  }
}

#endif  // EK_HAS_SM90A

// Block: a segment, a head, a pass. The first two of several passes go through a segment side by
// side: what both read comes from memory once.
__global__ void __launch_bounds__(kThreads, 1)
    SegmentOutputSm90Kernel(const __grid_constant__ LightningProblem problem,
                            const __grid_constant__ Maps maps, int num_passes) {
#if defined(EK_HAS_SM90A)
  extern __shared__ uint8_t shared[];
  __shared__ Barriers b;
  const uint32_t base = (SharedAddress(shared) + 1023) / 1024 * 1024;
  const Tiles tiles = {base, base + 2 * kTileBytes, base + 4 * kTileBytes, base + 6 * kTileBytes};
  const int block = static_cast<int>(blockIdx.x);
  const int blocks = static_cast<int>(gridDim.x) / num_passes;  // of a pass
  const int paired = num_passes / 2 * 2;
  const bool alone = block >= paired * blocks;
  const int index = alone ? block - paired * blocks : block / paired;
  const int which = alone ? paired : block % paired;
  Work work;
  work.pass = &problem.passes[which];
  work.head = index % problem.num_heads;
  work.index = index / problem.num_heads;
  work.segment = problem.plan.segments[work.index];
  work.log_decay = -problem.slopes[work.head] * kLog2E;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      for (uint64_t* full : {&b.q_full[i], &b.k_full[i], &b.v_full[i]}) {
        InitBarrier(SharedAddress(full), 1);
      }
      for (uint64_t* empty : {&b.q_empty[i], &b.k_empty[i], &b.v_empty[i]}) {
        InitBarrier(SharedAddress(empty), kConsumerWarps);
      }
    }
    FenceSharedForAsync();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    LowerRegisters<24>();
    if (threadIdx.x == 0) Produce(work, maps.passes[which], b, tiles);
  } else {
    RaiseRegisters<240>();
    const bool second = threadIdx.x >= 256;
    if (work.pass->reversed) {
      if (second) {
        Consume<true, false>(problem, work, b, tiles);
      } else {
        Consume<true, true>(problem, work, b, tiles);
      }
    } else if (second) {
      Consume<false, true>(problem, work, b, tiles);
    } else {
      Consume<false, false>(problem, work, b, tiles);
    }
  }
#endif
}

}  // namespace

cudaError_t LaunchSegmentOutputsSm90(const LightningProblem& problem, int num_passes, bool early,
                                     cudaStream_t stream) {
  if (problem.plan.num_segments == 0) return cudaSuccess;
  Maps maps = {};
  for (int i = 0; i < num_passes; ++i) {
    const Recurrence& pass = problem.passes[i];
    cudaError_t error = Encode(&maps.passes[i].q, pass.q, pass.q_stride, problem);
    if (error == cudaSuccess) error = EncodeKeysAndValues(&maps.passes[i], pass, problem);
    if (error != cudaSuccess) return error;
  }
  return Launch(SegmentOutputSm90Kernel, problem.plan.num_segments * problem.num_heads * num_passes,
                kSharedBytes, early, stream, problem, maps, num_passes);
}

}  // namespace evenkeel
