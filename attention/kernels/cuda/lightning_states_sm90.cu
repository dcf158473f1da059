// States of segments on Hopper.
#include "attention/kernels/cuda/lightning_sm90.cuh"

namespace evenkeel {
namespace {

using namespace lightning_sm90;  // NOLINT(google-build-using-namespace)

constexpr int kStages = 3;
// Tiles start at multiples of 1024 bytes; the base of shared memory need not.
constexpr int kSharedBytes = 1024 + kStages * 2 * kTileBytes;

#if defined(EK_HAS_SM90A)

// Chunks of a segment whose rows enter its state with a weight that is not zero in float32.
struct ChunkRange {
  int begin, end;
  bool reversed;

  __device__ __forceinline__ explicit ChunkRange(const Work& work)
      : begin(0), end(work.chunks()), reversed(work.pass->reversed) {
    const float reach = 128.0f / -work.log_decay;  // Exp2 is zero from -127 on
    if (!(reach < static_cast<float>(work.segment.rows))) return;
    const int rows = static_cast<int>(reach) + 1;
    if (reversed) {
      end = min(end, (rows + kRows - 1) / kRows);
    } else {
      begin = max(work.segment.rows - rows, 0) / kRows;
    }
  }
  __device__ __forceinline__ int count() const { return end - begin; }
  __device__ __forceinline__ int visited(int i) const { return reversed ? end - 1 - i : begin + i; }
};

struct Barriers {
  uint64_t full[kStages], empty[kStages];
};

struct Stage {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void Advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

__device__ __forceinline__ void Produce(const Work& work, const PassMaps& maps, Barriers& b,
                                        uint32_t tiles) {
  Stage place;
  const ChunkRange chunks(work);
  for (int i = 0; i < chunks.count(); ++i) {
    const uint32_t full = SharedAddress(&b.full[place.stage]);
    const uint32_t tile = tiles + place.stage * 2 * kTileBytes;
    const int row = work.segment.row_begin + chunks.visited(i) * kRows;
    WaitBarrier(SharedAddress(&b.empty[place.stage]), place.parity ^ 1);
    ArriveExpectingBytes(full, 2 * kTileBytes);
    StartTile(tile, &maps.k, full, work.head, row);
    StartTile(tile + kTileBytes, &maps.v, full, work.head, row);
    place.Advance();
  }
}

template <bool kReversed>
__device__ __forceinline__ void Consume(const Work& work, Barriers& b, uint32_t tiles,
                                        const Place& at, float* target) {
  const float log_decay = work.log_decay;
  const ChunkRange chunks(work);
  float state[kDim / 2];
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) state[i] = 0.0f;
  const int count = chunks.count();
  uint32_t keys[2][kHalf / 16][4];
  Stage place;
  // Waits for the chunk visited at place i and loads the keys of its first half; returns its rows
  // and those after it.
  const auto begin = [&](int i) {
    const int rows = work.segment.rows - chunks.visited(i) * kRows;
    const uint32_t k_tile = tiles + place.stage * 2 * kTileBytes;
    WaitBarrier(SharedAddress(&b.full[place.stage]), place.parity);
    if (rows < kRows) {
      ZeroRowsPast(rows, k_tile, k_tile + kTileBytes);
      FenceSharedForAsync();
      NamedBarrierSync(kConsumersBarrier, kConsumerThreads);
    }
    LoadWeightedKeys<kReversed>(keys[0], k_tile, at, Half(kReversed ? 1 : 0, rows), log_decay);
    return rows;
  };
  const auto add = [&](int h, const Half& half, uint32_t v_tile) {
    const float shrink = Exp2(log_decay * static_cast<float>(half.rows));
#pragma unroll
    for (int j = 0; j < kDim / 2; ++j) state[j] *= shrink;
    StartStateUpdate(state, keys[h], v_tile, half);
  };
  int rows = begin(0);
  for (int i = 0; i < count; ++i) {
    // The next keys are loaded while those before them are multiplied.
    const int stage = place.stage;
    const uint32_t k_tile = tiles + stage * 2 * kTileBytes, v_tile = k_tile + kTileBytes;
    const Half second(kReversed ? 0 : 1, rows);
    add(0, Half(kReversed ? 1 : 0, rows), v_tile);
    LoadWeightedKeys<kReversed>(keys[1], k_tile, at, second, log_decay);
    WgmmaWait<0>();
    add(1, second, v_tile);
    place.Advance();
    if (i + 1 < count) rows = begin(i + 1);
    WgmmaWait<0>();
    Release(b.empty[stage], at.lane);
  }
  StoreState(target, state, at);
}

#endif  // EK_HAS_SM90A

// Block: a segment, or the one of a join that comes first in the recurrence; a head; a pass.
__global__ void __launch_bounds__(kThreads, 1)
    SegmentStateSm90Kernel(const __grid_constant__ LightningProblem problem,
                           const __grid_constant__ Maps maps, int num_passes, bool joins) {
#if defined(EK_HAS_SM90A)
  LetDependentsStart();
  extern __shared__ uint8_t shared[];
  __shared__ Barriers b;
  const uint32_t tiles = (SharedAddress(shared) + 1023) / 1024 * 1024;
  const int index = static_cast<int>(blockIdx.x) / num_passes;
  const int which = static_cast<int>(blockIdx.x) % num_passes;
  Work work;
  work.pass = &problem.passes[which];
  work.head = index % problem.num_heads;
  work.index = index / problem.num_heads;
  if (joins) work.index = problem.plan.joins[work.index] + (work.pass->reversed ? 1 : 0);
  work.segment = problem.plan.segments[work.index];
  work.log_decay = -problem.slopes[work.head] * kLog2E;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      InitBarrier(SharedAddress(&b.full[i]), 1);
      InitBarrier(SharedAddress(&b.empty[i]), kConsumerWarps);
    }
    FenceSharedForAsync();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    LowerRegisters<24>();
    if (threadIdx.x == 0) Produce(work, maps.passes[which], b, tiles);
  } else {
    RaiseRegisters<240>();
    const Place at = PlaceOf(static_cast<int>(threadIdx.x) / 128 - 1);
    float* target =
        work.pass->states + (int64_t{work.index} * problem.num_heads + work.head) * kDim * kDim;
    if (work.pass->reversed) {
      Consume<true>(work, b, tiles, at, target);
    } else {
      Consume<false>(work, b, tiles, at, target);
    }
  }
#endif
}

}  // namespace

cudaError_t LaunchSegmentStatesSm90(const LightningProblem& problem, int num_passes, bool joins,
                                    cudaStream_t stream) {
  const int64_t segments = joins ? problem.plan.num_joins : problem.plan.num_segments;
  if (segments == 0) return cudaSuccess;
  Maps maps = {};
  for (int i = 0; i < num_passes; ++i) {
    const cudaError_t error = EncodeKeysAndValues(&maps.passes[i], problem.passes[i], problem);
    if (error != cudaSuccess) return error;
  }
  return Launch(SegmentStateSm90Kernel, segments * problem.num_heads * num_passes, kSharedBytes,
                /*early=*/false, stream, problem, maps, num_passes, joins);
}

}  // namespace evenkeel
