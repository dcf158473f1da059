#include "parallel/token_shards.h"

namespace evenkeel {

RowSpan TokenShards::PlaceOfMine(int64_t chunk) const {
  const RowSpan whole = Whole(chunk);
  const int ranks = DegreeOf(axis_), rank = PlaceOn(axis_);
  return {whole.begin + whole.size() * rank / ranks,
          whole.begin + whole.size() * (rank + 1) / ranks};
}

// The chunks of a part but its last are equally long.
RowSpan TokenShards::Mine(int64_t chunk) const {
  if (is_alone()) return Whole(chunk);
  const int64_t before = chunks_before_cut();
  const int64_t first = chunk < before ? 0 : before;  // chunk of the part
  int64_t begin = chunk == first ? 0 : (chunk - first) * PlaceOfMine(first).size();
  if (first > 0) begin += Part(0).num_mine();
  return {begin, begin + PlaceOfMine(chunk).size()};
}

int64_t TokenShards::num_mine() const {
  return tokens_ == 0 ? 0 : Mine(num_chunks() - 1).end;
}

std::vector<int64_t> TokenShards::Shares(int64_t chunk) const {
  const int64_t rows = Whole(chunk).size(), ranks = DegreeOf(axis_);
  std::vector<int64_t> shares;
  for (int64_t r = 0; r < ranks; ++r) {
    shares.push_back(rows * (r + 1) / ranks - rows * r / ranks);
  }
  return shares;
}

ChunkGather::ChunkGather(const OpContext& context, const TokenShards& shards, int64_t width,
                         const char* label)
    : shards_(shards), label_(label) {
  if (shards.is_alone()) return;
  for (InFlight& flight : flights_) {
    flight.buffer = context.arena.Allocate(context.dtype, {shards.max_rows(), width},
                                           MemoryPurpose::kWorkspace);
  }
}

void ChunkGather::Start(int64_t chunk, ConstTensorView mine) {
  InFlight& flight = flights_[chunk % 2];
  flight.rows = mine;
  if (shards_.is_alone()) return;
  const TensorView rows = flight.buffer.Rows(0, shards_.Whole(chunk).size());
  flight.work = shards_.axis()->AllGatherAsync(mine, rows, shards_.Shares(chunk), label_);
  flight.rows = rows;
}

ConstTensorView ChunkGather::Finish(int64_t chunk) {
  InFlight& flight = flights_[chunk % 2];
  if (!shards_.is_alone()) shards_.axis()->Wait(flight.work);
  return flight.rows;
}

ChunkScatter::ChunkScatter(const OpContext& context, const TokenShards& shards, int64_t width,
                           const char* label)
    : shards_(shards), label_(label) {
  if (shards.is_alone()) return;
  for (InFlight& flight : flights_) {
    flight.buffer = context.arena.Allocate(context.dtype, {shards.max_rows(), width},
                                           MemoryPurpose::kWorkspace);
  }
}

TensorView ChunkScatter::Partial(int64_t chunk) const {
  return flights_[chunk % 2].buffer.Rows(0, shards_.Whole(chunk).size());
}

void ChunkScatter::Start(int64_t chunk, TensorView mine) {
  flights_[chunk % 2].work =
      shards_.axis()->ReduceScatterAsync(Partial(chunk), mine, shards_.Shares(chunk), label_);
}

void ChunkScatter::Finish(int64_t chunk) {
  shards_.axis()->Wait(flights_[chunk % 2].work);
}

}  // namespace evenkeel
