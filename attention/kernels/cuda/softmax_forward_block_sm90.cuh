// What a block of the Hopper forward pass shares: its shape, its part of shared memory, and the
// thread that feeds it.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "attention/kernels/cuda/hopper.cuh"
#include "attention/kernels/cuda/mma.cuh"
#include "attention/kernels/cuda/softmax_attention_cuda.h"
#include "attention/kernels/cuda/tile_ticket.cuh"

namespace evenkeel {

template <int kDim>
struct ForwardShape {
  static constexpr int kHeadDim = kDim;
  static constexpr int kConsumers = 2;  // warpgroups
  static constexpr int kThreads = (1 + kConsumers) * 128;
  static constexpr int kQueries = kConsumers * 64;
  // At 256 as many as shared memory holds twice. With 64 keys the products would read it as long as
  // they multiply: 4 KB, 32 cycles, for 64 by 64 by 16.
  static constexpr int kKeys = kDim <= 128 ? 128 : 80;
  static constexpr int kStages = 2;
  static constexpr int kQBytes = kQueries * kHeadDim * 2;
  static constexpr int kTileBytes = kKeys * kHeadDim * 2;  // of keys, and of values
  // Tiles start at multiples of 1024 bytes; the base of shared memory need not.
  static constexpr int kSharedBytes = 1024 + kQBytes + 2 * kStages * kTileBytes;
};

struct ForwardTensorMaps {
  CUtensorMap q, k, v;  // boxes of 64 columns, one head, a tile's rows
};

struct ForwardBarriers {
  uint64_t q_full, q_empty;
  uint64_t k_full[2], k_empty[2], v_full[2], v_empty[2];
};

// A query tile of one head, told beside its queries.
struct ForwardWork {
  int q_begin;
  int q_rows;
  int visible;
  int num_keys;
  int head;  // -1: there is no more work
};

// Stages of keys and of values follow one another.
struct ForwardTiles {
  uint32_t q, k, v;
};

#if defined(EK_HAS_SM90A)

// The thread that feeds the others: the queries of a tile once the scores of the one before are
// done, keys and values two blocks ahead, the last block first.
template <typename Shape>
__device__ __forceinline__ void ProduceForward(const SoftmaxForwardParams& p,
                                               const ForwardTensorMaps& maps, ForwardBarriers& b,
                                               const ForwardTiles& tiles, ForwardWork& work) {
  const auto num_tickets = static_cast<uint32_t>(p.plan.num_forward_tiles * p.num_heads);
  const int group = p.num_heads / p.num_kv_heads;
  RingPlace place;
  uint32_t q_parity = 1;  // of the phase before the first: an empty buffer is free at once
  uint32_t ticket = atomicAdd(p.plan.forward_tickets, 1);
  while (ticket < num_tickets) {
    const auto [tile_index, head] =
        QueryTicketOf(p.plan.forward_tiles, ticket, p.num_heads, p.num_kv_heads);
    const QueryTile tile = p.plan.forward_tiles[tile_index];
    WaitBarrier(SharedAddress(&b.q_empty), q_parity);
    q_parity ^= 1;
    work = {tile.q_begin, tile.q_rows, tile.visible, tile.num_keys, head};
    if (tile.num_keys > 0) {
      CopyTile<Shape::kQueries, Shape::kHeadDim>(tiles.q, &maps.q, SharedAddress(&b.q_full), head,
                                                 tile.q_begin);
    } else {
      Arrive(SharedAddress(&b.q_full));
    }
    ticket = atomicAdd(p.plan.forward_tickets, 1);  // arrives while the blocks are copied
    for (int block = (tile.num_keys + Shape::kKeys - 1) / Shape::kKeys - 1; block >= 0; --block) {
      const int row = tile.kv_begin + block * Shape::kKeys;
      WaitBarrier(SharedAddress(&b.k_empty[place.stage]), place.parity ^ 1);
      CopyTile<Shape::kKeys, Shape::kHeadDim>(tiles.k + place.stage * Shape::kTileBytes, &maps.k,
                                              SharedAddress(&b.k_full[place.stage]), head / group,
                                              row);
      WaitBarrier(SharedAddress(&b.v_empty[place.stage]), place.parity ^ 1);
      CopyTile<Shape::kKeys, Shape::kHeadDim>(tiles.v + place.stage * Shape::kTileBytes, &maps.v,
                                              SharedAddress(&b.v_full[place.stage]), head / group,
                                              row);
      place.Advance();
    }
  }
  WaitBarrier(SharedAddress(&b.q_empty), q_parity);
  work.head = -1;
  Arrive(SharedAddress(&b.q_full));
  // Every block draws one ticket too many; with the last of those nobody draws any more.
  if (ticket == num_tickets + gridDim.x - 1) *p.plan.forward_tickets = 0;
}

#endif  // EK_HAS_SM90A

}  // namespace evenkeel
