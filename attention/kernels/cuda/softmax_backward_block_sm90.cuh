// Shared memory of a block of the Hopper backward pass (softmax_attention_backward_sm90.cu), and
// the warp that feeds keys and queries through it to those that multiply. What these leave of dQ
// others add to memory: softmax_backward_adders_sm90.cuh.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "attention/kernels/cuda/hopper.cuh"
#include "attention/kernels/cuda/softmax_attention_cuda.h"
#include "attention/kernels/cuda/softmax_backward_walk.cuh"
#include "attention/kernels/cuda/softmax_backward_workspace.h"

namespace evenkeel {

// Up to a head size of 128 two warpgroups own 64 keys each of a tile of 128, and all of dK and dV
// at these. At 256 they own dV and dK at the same 64 keys (kByGradient).
template <int kDim>
struct Sm90BackwardShape {
  static constexpr bool kByGradient = kDim == 256;
  static constexpr int kHeadDim = kDim;
  static constexpr int kThreads = kByGradient ? 384 : 512;
  static constexpr int kKeys = kByGradient ? 64 : 128;
  static constexpr int kQueries = kDim == 64 ? 128 : 64;
  static constexpr int kKeyBytes = kKeys * kDim * 2;
  static constexpr int kQueryBytes = kQueries * kDim * 2;
  static constexpr int kScoreBytes = kKeys * kQueries * 2;
  static constexpr int kRowBytes = kQueries * 4;       // of lse, and of delta
  static constexpr int kTileFloats = kQueries * kDim;  // of dQ
  // dQ goes to memory in pieces of 64 x 64; each half of a tile has as many.
  static constexpr int kPieceFloats = 64 * 64;
  static constexpr int kPieceBytes = kPieceFloats * 4;
  static constexpr int kPieces = kTileFloats / kPieceFloats / 2;
  // Stages of shared memory: of Q also of lse and the notes of a step.
  static constexpr int kQueryStages = kDim == 128 ? 3 : 2;
  static constexpr int kKeyStages = kByGradient ? 1 : 2;
  static constexpr int kDoutStages = kByGradient ? 1 : 2;               // and of delta
  static constexpr int kScoreStages = kDim == 64 ? 2 : 1;               // of dS^T
  static constexpr int kExchangeBytes = kByGradient ? kScoreBytes : 0;  // P, to the other warpgroup
  // Places for pieces of dQ: for those of the first half, and of both.
  static constexpr int kFirstPlaces = kByGradient ? 2 : 1;
  static constexpr int kPlaces = kFirstPlaces + 1;
  static constexpr int kSharedBytes =
      1024 + (kKeyStages + 1) * kKeyBytes + kQueryStages * kQueryBytes + kDoutStages * kQueryBytes +
      kScoreStages * kScoreBytes + kExchangeBytes + (kQueryStages + kDoutStages) * kRowBytes +
      kPlaces * kPieceBytes;
};

// Of a block, with what is static and without what the system takes (CUDA C++ Programming Guide,
// compute capability 9.0).
constexpr int kMostSharedBytes = 227 * 1024;

struct BackwardTensorMaps {
  CUtensorMap q, dout, k, v;
};

struct BackwardBarriers {
  uint64_t k_full[2], k_empty[2], v_full, v_empty;
  uint64_t q_full[3], q_empty[3], do_full[2], do_empty[2];
  uint64_t ds_full[2], ds_empty[2];
  uint64_t dq_named[4];              // which tile of dQ is next
  uint64_t dq_full[4], dq_empty[3];  // of the places for pieces of dQ
};

// One step of the consumers, told by the producer beside the query tile: they have no registers to
// spare for the walk itself.
struct BackwardStep {
  int tile;  // of dQ, and of the counters; -1 after the last step
  int turn;  // contributions to the tile before this one
  int rows;  // of the query tile, may exceed its size
  // Key c of the key tile is seen by query i of the tile if begin <= c < min(end + i, limit).
  int begin;
  int end;
  int limit;
  bool last;  // of the key tile
};

// A key tile of one key/value head, told beside its keys.
struct BackwardKeys {
  int kv_begin;
  int kv_rows;
  int kv_head;
};

// The producer is at most two key tiles ahead of the consumers, who may still store the gradients
// of one.
constexpr int kKeyNotes = 4;

// What is said of a piece of dQ of a step before it is in shared memory.
struct Contribution {
  int tile;  // -1 after the last
  int turn;
};

// Shared memory of a block. The stages of each, and the places for pieces of dQ, follow one
// another.
struct BackwardTiles {
  uint32_t k, v, q, dout, ds, exchange, lse, delta, dq;
};

#if defined(EK_HAS_SM90A)

// The warp that feeds the others: query tiles as far ahead as there are stages, and the keys of the
// next key tile while the last queries of this one are worked on (at head size 256, which has one
// stage of keys, once they have been).
template <typename Shape>
__device__ __forceinline__ void ProduceBackward(const SoftmaxBackwardParams& params,
                                                const SoftmaxBackwardWorkspace& w,
                                                const BackwardTensorMaps& maps, BackwardBarriers& b,
                                                const BackwardTiles& tiles, BackwardStep* steps,
                                                BackwardKeys* notes, int lane) {
  const SoftmaxForwardParams& p = params.forward;
  const int group = p.num_heads / p.num_kv_heads;
  RingPlace<Shape::kQueryStages> place;
  RingPlace<Shape::kDoutStages> do_place;
  RingPlace<Shape::kKeyStages> key_place;
  for (uint32_t round = 0;; ++round) {
    // Tickets, not block indices: a block may wait only for what running blocks hold, each of which
    // works in the order in which it takes them. As late as possible: who holds one keeps the key
    // tiles behind it waiting for their turns.
    uint32_t ticket = 0;
    if (lane == 0) ticket = atomicAdd(w.counters, 1);
    ticket = __shfl_sync(0xffffffffu, ticket, 0);
    if (ticket >= static_cast<uint32_t>(p.plan.num_key_tiles * p.num_kv_heads)) break;
    const auto [tile_index, kv_head] = TicketOf(p.plan.key_tiles, ticket, p.num_kv_heads);
    const KeyTile keys = p.plan.key_tiles[tile_index];
    if (lane == 0) {
      WaitBarrier(SharedAddress(&b.k_empty[key_place.stage]), key_place.parity ^ 1);
      notes[round % kKeyNotes] = {keys.kv_begin, keys.kv_rows, kv_head};
      CopyTile<Shape::kKeys, Shape::kHeadDim, true>(
          tiles.k + key_place.stage * Shape::kKeyBytes, &maps.k,
          SharedAddress(&b.k_full[key_place.stage]), kv_head, keys.kv_begin);
    }
    __syncwarp();
    key_place.Advance();
    bool first = true;
    Walk walk;
    SeekTask<Shape>(walk, p.plan.tasks, keys, keys.task_begin, lane);
    while (walk.valid) {
      const int task_index = walk.task_index, query_tile = walk.tile;
      const int head = kv_head * group + walk.group_head;
      Advance<Shape>(walk, p.plan.tasks, keys, group, lane);
      if (lane == 0) {
        // Read again rather than kept: this warp has 24 or 32 registers a thread.
        const PlannedTask& task = p.plan.tasks[task_index];
        const int row = task.q_begin + query_tile * Shape::kQueries;
        const int tile = (task.first_tile + query_tile) * p.num_heads + head;
        const int64_t statistics = int64_t{tile} * Shape::kQueries;
        const uint32_t q_full = SharedAddress(&b.q_full[place.stage]);
        const uint32_t do_full = SharedAddress(&b.do_full[do_place.stage]);
        const int begin = task.kv_begin - keys.kv_begin;
        WaitBarrier(SharedAddress(&b.q_empty[place.stage]), place.parity ^ 1);
        steps[place.stage] = {tile,
                              (keys.kv_begin - task.first_key_tile_row) / Shape::kKeys,
                              task.q_len - query_tile * Shape::kQueries,
                              begin,
                              begin + task.visible + query_tile * Shape::kQueries,
                              begin + task.kv_len,
                              !walk.valid};
        CopyTile<Shape::kQueries, Shape::kHeadDim>(tiles.q + place.stage * Shape::kQueryBytes,
                                                   &maps.q, q_full, head, row, Shape::kRowBytes);
        CopyBytes(tiles.lse + place.stage * Shape::kRowBytes, w.lse + statistics, Shape::kRowBytes,
                  q_full);
        if (first) {
          WaitBarrier(SharedAddress(&b.v_empty), round % 2 ^ 1);
          CopyTile<Shape::kKeys, Shape::kHeadDim, true>(tiles.v, &maps.v, SharedAddress(&b.v_full),
                                                        kv_head, keys.kv_begin);
        }
        WaitBarrier(SharedAddress(&b.do_empty[do_place.stage]), do_place.parity ^ 1);
        CopyTile<Shape::kQueries, Shape::kHeadDim>(tiles.dout + do_place.stage * Shape::kQueryBytes,
                                                   &maps.dout, do_full, head, row,
                                                   Shape::kRowBytes);
        CopyBytes(tiles.delta + do_place.stage * Shape::kRowBytes, w.delta + statistics,
                  Shape::kRowBytes, do_full);
      }
      __syncwarp();
      first = false;
      place.Advance();
      do_place.Advance();
    }
  }
  if (lane == 0) {
    WaitBarrier(SharedAddress(&b.q_empty[place.stage]), place.parity ^ 1);
    steps[place.stage].tile = -1;
    Arrive(SharedAddress(&b.q_full[place.stage]));
  }
}

#endif  // EK_HAS_SM90A

}  // namespace evenkeel
