#include "scheduler/nano_batches.h"

#include <algorithm>
#include <numeric>

namespace evenkeel {
namespace {

// Where the parts of a micro-batch begin, in its order of tokens: replica, nano-batch, rank.
std::vector<int64_t> PartBegins(int64_t tokens, int replicas, int ranks) {
  std::vector<int64_t> begins;
  for (int replica = 0; replica < replicas; ++replica) {
    const int64_t share = tokens * replica / replicas;
    const int64_t size = tokens * (replica + 1) / replicas - share;
    for (int nano = 0; nano < kNanoBatches; ++nano) {
      const int64_t half = size * nano / kNanoBatches;
      const int64_t half_size = size * (nano + 1) / kNanoBatches - half;
      for (int rank = 0; rank < ranks; ++rank) {
        begins.push_back(share + half + half_size * rank / ranks);
      }
    }
  }
  begins.push_back(tokens);
  return begins;
}

}  // namespace

std::vector<std::vector<int64_t>> CutEvenly(absl::Span<const int64_t> documents, int64_t parts) {
  const int64_t tokens = std::accumulate(documents.begin(), documents.end(), int64_t{0});
  std::vector<std::vector<int64_t>> cut(static_cast<size_t>(parts));
  int64_t at = 0, part = 0;
  for (int64_t length : documents) {
    for (const int64_t end = at + length; at < end;) {
      while (tokens * (part + 1) / parts <= at) ++part;
      const int64_t until = std::min(end, tokens * (part + 1) / parts);
      cut[static_cast<size_t>(part)].push_back(until - at);
      at = until;
    }
  }
  return cut;
}

NanoLayout LayOutNanoBatches(absl::Span<const int64_t> documents, int replicas, int ranks) {
  int64_t tokens = 0;
  for (int64_t length : documents) tokens += length;
  const std::vector<int64_t> begins = PartBegins(tokens, replicas, ranks);
  NanoLayout layout;
  layout.tokens.resize(static_cast<size_t>(replicas * ranks));
  const int parts_of_replica = kNanoBatches * ranks;
  int part = 0;
  int64_t at = 0;
  for (int64_t length : documents) {
    NanoDocument document;
    int replica = -1;
    for (const int64_t end = at + length; at < end;) {
      while (begins[static_cast<size_t>(part) + 1] <= at) ++part;
      const int64_t until = std::min(end, begins[static_cast<size_t>(part) + 1]);
      if (replica >= 0 && part / parts_of_replica != replica) {
        layout.documents.push_back(std::move(document));
        document = {};
      }
      replica = part / parts_of_replica;
      const int within = part % parts_of_replica;
      const NanoPiece piece = {replica * ranks + within % ranks, within / ranks, document.length,
                               until - at};
      document.pieces.push_back(piece);
      document.length += piece.length;
      layout.tokens[static_cast<size_t>(piece.owner)][static_cast<size_t>(piece.nano)] +=
          piece.length;
      at = until;
    }
    if (document.length > 0) layout.documents.push_back(std::move(document));
  }
  return layout;
}

}  // namespace evenkeel
