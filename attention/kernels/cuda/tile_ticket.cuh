// The order in which blocks take the tiles of a plan, head by head, in batches that read the same
// keys at the same time.
#pragma once

#include <cstdint>

namespace evenkeel {

// A tile of one key/value head, what a block takes with a ticket. Tickets run through the batches
// of the plan; within a batch through blocks of heads, then through tiles, then through the heads
// of the block.
struct TileTicket {
  int tile;
  int kv_head;
};

// Tile: KeyTile or QueryTile, [num_tiles] of them.
template <typename Tile>
__device__ __forceinline__ TileTicket TicketOf(const Tile* tiles, uint32_t ticket,
                                               int num_kv_heads) {
  const Tile& any = tiles[ticket / num_kv_heads];  // one of the batch
  const int tickets = static_cast<int>(ticket) - any.batch_begin * num_kv_heads;
  const int block = tickets / (any.batch_tiles * any.heads_at_once);
  const int first_head = block * any.heads_at_once;
  const int heads = min(any.heads_at_once, num_kv_heads - first_head);
  const int within = tickets - first_head * any.batch_tiles;
  return {any.batch_begin + within / heads, first_head + within % heads};
}

// The query tile and query head that come as number `index` of num_tiles * num_heads: the heads
// that share a key/value head one after the other.
struct QueryTicket {
  int tile;
  int head;
};

template <typename Tile>
__device__ __forceinline__ QueryTicket QueryTicketOf(const Tile* tiles, uint32_t index,
                                                     int num_heads, int num_kv_heads) {
  const int group = num_heads / num_kv_heads;
  const TileTicket ticket = TicketOf(tiles, index / group, num_kv_heads);
  return {ticket.tile, ticket.kv_head * group + static_cast<int>(index % group)};
}

}  // namespace evenkeel
