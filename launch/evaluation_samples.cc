#include "launch/evaluation_samples.h"

#include <algorithm>

#include "runtime/base/status_macros.h"

namespace evenkeel {
namespace {

// A round of `m` passes takes m + stages - 1 ticks.
constexpr int64_t kPassesPerStage = 8;

}  // namespace

absl::StatusOr<EvaluationSamples> EvaluationSamples::Create(
    const std::vector<int64_t>& document_lengths, int64_t sequence_length, int64_t max_samples,
    int replicas, int stages) {
  EK_ASSIGN_OR_RETURN(SequentialOrder order,
                      SequentialOrder::Create(document_lengths, sequence_length));
  const int64_t total = order.num_samples();
  const int64_t count = max_samples > 0 ? std::min(max_samples, total) : total;
  return EvaluationSamples(std::move(order), sequence_length, count, replicas,
                           kPassesPerStage * stages);
}

std::pair<int64_t, int64_t> EvaluationSamples::PassesOf(int64_t round) const {
  const int64_t first = round * passes_per_round_;
  return {first, std::min(first + passes_per_round_, num_passes())};
}

int64_t EvaluationSamples::SampleOf(int64_t pass, int replica) const {
  const int64_t sample = pass * replicas_ + replica;
  return sample < count_ ? sample : -1;
}

std::vector<Piece> EvaluationSamples::Pieces(int64_t sample) const {
  return order_.Sample(sample * order_.num_samples() / count_);
}

ReplicaCuSeqlens EvaluationSamples::DocumentsOf(int64_t round) const {
  ReplicaCuSeqlens documents(static_cast<size_t>(replicas_));
  const auto [first, end] = PassesOf(round);
  for (int64_t pass = first; pass < end; ++pass) {
    for (int replica = 0; replica < replicas_; ++replica) {
      std::vector<int64_t> cu_seqlens = {0};
      if (const int64_t sample = SampleOf(pass, replica); sample >= 0) {
        for (const Piece& piece : Pieces(sample)) {
          cu_seqlens.push_back(cu_seqlens.back() + piece.length);
        }
      }
      documents[static_cast<size_t>(replica)].push_back(std::move(cu_seqlens));
    }
  }
  return documents;
}

}  // namespace evenkeel
