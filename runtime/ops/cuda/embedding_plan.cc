#include "runtime/ops/cuda/embedding_plan.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace evenkeel {
namespace {

// Places of the tokens with a row by ascending id, stable: least significant digits first.
std::vector<int32_t> SortedPlaces(const int32_t* tokens, int64_t num_tokens) {
  constexpr int kBits = 11;
  constexpr size_t kDigits = size_t{1} << kBits;
  std::vector<int32_t> places;
  places.reserve(static_cast<size_t>(num_tokens));
  int32_t most = 0;
  for (int64_t t = 0; t < num_tokens; ++t) {
    if (tokens[t] < 0) continue;
    places.push_back(static_cast<int32_t>(t));
    most = std::max(most, tokens[t]);
  }
  std::vector<int32_t> next(places.size());
  for (int shift = 0; shift < 32 && most >> shift > 0; shift += kBits) {
    std::array<int64_t, kDigits + 1> begin = {};
    const auto digit = [&](int32_t place) {
      return static_cast<size_t>(tokens[place] >> shift) % kDigits;
    };
    for (const int32_t place : places) ++begin[digit(place) + 1];
    for (size_t d = 0; d < kDigits; ++d) begin[d + 1] += begin[d];
    for (const int32_t place : places) next[static_cast<size_t>(begin[digit(place)]++)] = place;
    places.swap(next);
  }
  return places;
}

int64_t Aligned(size_t bytes) {
  return static_cast<int64_t>((bytes + 15) / 16 * 16);
}

template <typename T>
void CopyTo(const std::vector<T>& values, char* to) {
  if (!values.empty()) std::memcpy(to, values.data(), values.size() * sizeof(T));
}

}  // namespace

EmbeddingPlan PlanEmbeddingBackward(const int32_t* tokens, int64_t num_tokens) {
  const std::vector<int32_t> order = SortedPlaces(tokens, num_tokens);
  std::vector<EmbeddingPiece> pieces;
  std::vector<EmbeddingSplit> splits;
  const auto total = static_cast<int32_t>(order.size());
  const auto id_at = [&](int32_t i) { return tokens[order[static_cast<size_t>(i)]]; };
  EmbeddingPlan plan;
  for (int32_t begin = 0, end; begin < total; begin = end) {
    const int32_t token = id_at(begin);
    end = begin + 1;
    while (end < total && id_at(end) == token) ++end;
    const int32_t runs = (end - begin + kEmbeddingPieceTokens - 1) / kEmbeddingPieceTokens;
    const bool split = runs > 1;
    if (split) splits.push_back({token, static_cast<int32_t>(plan.num_slots), runs});
    for (int32_t at = begin; at < end; at += kEmbeddingPieceTokens) {
      const int32_t slot = split ? static_cast<int32_t>(plan.num_slots++) : -1;
      pieces.push_back({token, at, std::min(kEmbeddingPieceTokens, end - at), slot});
    }
  }
  plan.num_pieces = static_cast<int64_t>(pieces.size());
  plan.num_splits = static_cast<int64_t>(splits.size());
  plan.pieces_offset = Aligned(order.size() * sizeof(int32_t));
  plan.splits_offset = plan.pieces_offset + Aligned(pieces.size() * sizeof(EmbeddingPiece));
  plan.bytes.resize(
      static_cast<size_t>(plan.splits_offset + Aligned(splits.size() * sizeof(EmbeddingSplit))));
  CopyTo(order, plan.bytes.data());
  CopyTo(pieces, plan.bytes.data() + plan.pieces_offset);
  CopyTo(splits, plan.bytes.data() + plan.splits_offset);
  return plan;
}

EmbeddingPlanView ViewOf(const EmbeddingPlan& plan, const void* device) {
  const char* base = static_cast<const char*>(device);
  EmbeddingPlanView view;
  view.order = reinterpret_cast<const int32_t*>(base);
  view.pieces = reinterpret_cast<const EmbeddingPiece*>(base + plan.pieces_offset);
  view.splits = reinterpret_cast<const EmbeddingSplit*>(base + plan.splits_offset);
  view.num_pieces = plan.num_pieces;
  view.num_splits = plan.num_splits;
  view.num_slots = plan.num_slots;
  return view;
}

}  // namespace evenkeel
