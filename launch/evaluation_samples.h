// What an evaluation scores, and who scores what: held-out samples, dealt to replicas, in passes
// and rounds. Every rank knows all of it from the lengths of the documents alone, so that attention
// can be planned for all replicas (launch/attention_planner.h). Pure.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/data/sample_order.h"

namespace evenkeel {

// Documents of some micro-batches as prefix sums, [replica][micro_batch][D + 1].
using ReplicaCuSeqlens = std::vector<std::vector<std::vector<int64_t>>>;

// Pass `p` is one sample for each replica: p * replicas + r for replica r, or, in the last pass,
// none. A round is several passes that are run together.
class EvaluationSamples {
 public:
  // The pieces of SequentialOrder, or, with max_samples > 0, only so many, evenly spread. `stages`:
  // of the pipeline; a round is long enough that filling it is little of its time. Fails as
  // SequentialOrder::Create does.
  static absl::StatusOr<EvaluationSamples> Create(const std::vector<int64_t>& document_lengths,
                                                  int64_t sequence_length, int64_t max_samples,
                                                  int replicas, int stages);

  // Of the longest sample.
  int64_t sequence_length() const { return sequence_length_; }
  int64_t count() const { return count_; }
  int64_t num_passes() const { return (count_ + replicas_ - 1) / replicas_; }
  int64_t num_rounds() const { return (num_passes() + passes_per_round_ - 1) / passes_per_round_; }
  // The passes of a round, [first, second).
  std::pair<int64_t, int64_t> PassesOf(int64_t round) const;

  // Of [0, count()), or -1 where the replica has none in the pass.
  int64_t SampleOf(int64_t pass, int replica) const;
  std::vector<Piece> Pieces(int64_t sample) const;
  // A micro-batch a pass; one without a sample has no document.
  ReplicaCuSeqlens DocumentsOf(int64_t round) const;

 private:
  EvaluationSamples(SequentialOrder order, int64_t sequence_length, int64_t count, int replicas,
                    int64_t passes_per_round)
      : order_(std::move(order)),
        sequence_length_(sequence_length),
        count_(count),
        replicas_(replicas),
        passes_per_round_(passes_per_round) {}

  SequentialOrder order_;
  int64_t sequence_length_;
  int64_t count_;
  int replicas_;
  int64_t passes_per_round_;
};

}  // namespace evenkeel
