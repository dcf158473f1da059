// The threads of the Hopper backward pass that add dQ to memory, each piece when its turn has come,
// so that sums do not depend on timing.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "attention/kernels/cuda/hopper.cuh"
#include "attention/kernels/cuda/softmax_backward_block_sm90.cuh"
#include "attention/kernels/cuda/softmax_backward_walk.cuh"
#include "attention/kernels/cuda/softmax_backward_workspace.h"

namespace evenkeel {

#if defined(EK_HAS_SM90A)

// Waits for the turn of a contribution to one half of a tile's dQ.
__device__ __forceinline__ uint32_t* AwaitTurn(const SoftmaxBackwardWorkspace& w,
                                               const Contribution& now, int half) {
  uint32_t* const counter = w.counters + 1 + int64_t{now.tile} * 2 + half;
  while (ReadCounter(counter) != static_cast<uint32_t>(now.turn)) {
  }
  __threadfence();
  return counter;
}

// Starts adding a piece, or writing the first; returns when it has been read.
template <typename Shape>
__device__ __forceinline__ void AddPiece(float* target, uint32_t piece, int turn) {
  if (turn == 0) {
    StoreBytes(target, piece, Shape::kPieceBytes);
  } else {
    AddFloats(target, piece, Shape::kPieceBytes);
  }
  CommitTransfers();
  WaitTransfersRead();
}

// Adds both pieces of every second tile, so that one tile's may be on their way while the next
// one's turn comes. which: 0 for the first tile, the third and so on; 1 for the others.
template <typename Shape>
__device__ __forceinline__ void AddEverySecond(const SoftmaxBackwardWorkspace& w,
                                               BackwardBarriers& b, const BackwardTiles& tiles,
                                               const Contribution* contributions, int which) {
  for (uint32_t parity = 0;; parity ^= 1) {
    WaitBarrier(SharedAddress(&b.dq_named[which]), parity);
    const Contribution now = contributions[which];
    if (now.tile < 0) return;
    uint32_t* const counter = AwaitTurn(w, now, 0);
    float* const target = w.dq + int64_t{now.tile} * Shape::kTileFloats;
#pragma unroll
    for (int piece = 0; piece < 2; ++piece) {
      WaitBarrier(SharedAddress(&b.dq_full[piece * 2 + which]), parity);
      AddPiece<Shape>(target + piece * Shape::kPieceFloats, tiles.dq + piece * Shape::kPieceBytes,
                      now.turn);
      Arrive(SharedAddress(&b.dq_empty[piece]));
    }
    WaitTransfersDone();
    CountContribution(counter);
  }
}

// Adds one half of every dQ tile, what one warpgroup of a block alone has left.
template <typename Shape, int kHalf>
__device__ __forceinline__ void AddHalf(const SoftmaxBackwardWorkspace& w, BackwardBarriers& b,
                                        const BackwardTiles& tiles,
                                        const Contribution* contributions) {
  constexpr int kFirst = kHalf == 0 ? 0 : Shape::kFirstPlaces;
  RingPlace<kHalf == 0 ? Shape::kFirstPlaces : Shape::kPlaces - Shape::kFirstPlaces> piece_place;
  for (RingPlace<2> place;; place.Advance()) {
    const int name = kHalf * 2 + place.stage;
    WaitBarrier(SharedAddress(&b.dq_named[name]), place.parity);
    const Contribution now = contributions[name];
    if (now.tile < 0) return;
    uint32_t* const counter = AwaitTurn(w, now, kHalf);
    float* target = w.dq + int64_t{now.tile} * Shape::kTileFloats +
                    kHalf * Shape::kPieces * Shape::kPieceFloats;
#pragma unroll
    for (int piece = 0; piece < Shape::kPieces; ++piece) {
      const int at = kFirst + piece_place.stage;
      WaitBarrier(SharedAddress(&b.dq_full[at]), piece_place.parity);
      AddPiece<Shape>(target, tiles.dq + at * Shape::kPieceBytes, now.turn);
      Arrive(SharedAddress(&b.dq_empty[at]));
      piece_place.Advance();
      target += Shape::kPieceFloats;
    }
    WaitTransfersDone();
    CountContribution(counter);
  }
}

#endif  // EK_HAS_SM90A

}  // namespace evenkeel
