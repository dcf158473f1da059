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

// kCluster: 2 if two blocks take the same queries of two heads that share keys and values, of which
// each fetches half for both; else 1.
template <int kDim, int kClusterBlocks>
struct ForwardShape {
  static constexpr int kHeadDim = kDim;
  static constexpr int kCluster = kClusterBlocks;
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
  // Boxes of 64 columns, one head, a tile's rows; of k and v what one block of a cluster fetches.
  CUtensorMap q, k, v;
};

struct ForwardBarriers {
  uint64_t q_full, q_empty;
  uint64_t k_full[2], k_empty[2], v_full[2], v_empty[2];  // empty: in all blocks of the cluster
  uint64_t ticket_full, ticket_empty;                     // of the second block of a cluster
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

// Draws tickets, one at a time. In a cluster the first block draws for both, two tiles a ticket.
template <typename Shape>
class ForwardTickets {
 public:
  __device__ __forceinline__ ForwardTickets(const SoftmaxForwardParams& p, ForwardBarriers& b,
                                            uint32_t& mail)
      : tickets_(p.plan.forward_tickets),
        count_(static_cast<uint32_t>(p.plan.num_forward_tiles * p.num_heads) / Shape::kCluster),
        rank_(Shape::kCluster > 1 ? ClusterRank() : 0),
        mail_(SharedAddress(&mail)),
        full_(SharedAddress(&b.ticket_full)),
        empty_(SharedAddress(&b.ticket_empty)) {
    if (rank_ == 0) next_ = atomicAdd(tickets_, 1);
  }

  // The number of the block's next tile and head, as QueryTicketOf counts them; false at the end.
  __device__ __forceinline__ bool Next(uint32_t& number) {
    uint32_t ticket = next_;
    if (Shape::kCluster > 1) {
      if (rank_ == 0) {
        WaitBarrier(empty_, parity_ ^ 1);
        SendWord(AddressInPeer(mail_, 1), ticket, AddressInPeer(full_, 1));
      } else {
        ArriveExpectingBytes(full_, 4);
        WaitBarrier(full_, parity_);
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(ticket) : "r"(mail_) : "memory");
        ArriveAtPeer(AddressInPeer(empty_, 0));
      }
      parity_ ^= 1;
    }
    number = ticket * Shape::kCluster + rank_;
    if (ticket < count_) return true;
    // Every drawer draws one ticket too many; with the last of those nobody draws any more.
    if (rank_ == 0 && ticket == count_ + gridDim.x / Shape::kCluster - 1) *tickets_ = 0;
    return false;
  }

  // Draws ahead: the ticket arrives while a tile's blocks are copied.
  __device__ __forceinline__ void Draw() {
    if (rank_ == 0) next_ = atomicAdd(tickets_, 1);
  }

 private:
  uint32_t* const tickets_;
  const uint32_t count_, rank_, mail_, full_, empty_;
  uint32_t next_ = 0, parity_ = 0;
};

// Starts copying a tile of keys or values: all of it, or this block's half to both.
template <typename Shape>
__device__ __forceinline__ void CopyKeyTile(uint32_t tile, const CUtensorMap* map, uint32_t barrier,
                                            int head, int row) {
  if constexpr (Shape::kCluster == 1) {
    CopyTile<Shape::kKeys, Shape::kHeadDim>(tile, map, barrier, head, row);
  } else {
    const int first = static_cast<int>(ClusterRank()) * (Shape::kKeys / 2);
    ArriveExpectingBytes(barrier, Shape::kTileBytes);
#pragma unroll
    for (int panel = 0; panel < Shape::kHeadDim / 64; ++panel) {
      CopyBoxToBoth(tile + panel * (Shape::kKeys * 128) + first * 128, map, barrier, panel * 64,
                    head, row + first);
    }
  }
}

// The thread that feeds the others: the queries of a tile once the scores of the one before are
// done, keys and values two blocks ahead, the last block first.
template <typename Shape>
__device__ __forceinline__ void ProduceForward(const SoftmaxForwardParams& p,
                                               const ForwardTensorMaps& maps, ForwardBarriers& b,
                                               const ForwardTiles& tiles, ForwardWork& work,
                                               uint32_t& mail) {
  const int group = p.num_heads / p.num_kv_heads;
  ForwardTickets<Shape> tickets(p, b, mail);
  RingPlace place;
  uint32_t q_parity = 1;  // of the phase before the first: an empty buffer is free at once
  uint32_t number;
  while (tickets.Next(number)) {
    const auto [tile_index, head] =
        QueryTicketOf(p.plan.forward_tiles, number, p.num_heads, p.num_kv_heads);
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
    tickets.Draw();
    for (int block = (tile.num_keys + Shape::kKeys - 1) / Shape::kKeys - 1; block >= 0; --block) {
      const int row = tile.kv_begin + block * Shape::kKeys;
      WaitBarrier(SharedAddress(&b.k_empty[place.stage]), place.parity ^ 1);
      CopyKeyTile<Shape>(tiles.k + place.stage * Shape::kTileBytes, &maps.k,
                         SharedAddress(&b.k_full[place.stage]), head / group, row);
      WaitBarrier(SharedAddress(&b.v_empty[place.stage]), place.parity ^ 1);
      CopyKeyTile<Shape>(tiles.v + place.stage * Shape::kTileBytes, &maps.v,
                         SharedAddress(&b.v_full[place.stage]), head / group, row);
      place.Advance();
    }
  }
  WaitBarrier(SharedAddress(&b.q_empty), q_parity);
  work.head = -1;
  Arrive(SharedAddress(&b.q_full));
}

#endif  // EK_HAS_SM90A

}  // namespace evenkeel
