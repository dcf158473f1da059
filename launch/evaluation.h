// Perplexity on held-out documents, overall and by position in the document.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "launch/evaluation_samples.h"
#include "models/pipeline_run.h"
#include "runtime/comm/communicator.h"
#include "runtime/data/indexed_dataset.h"
#include "runtime/data/packed_batch.h"

namespace evenkeel {

// Tokens whose position in their piece is in [begin, end).
struct PositionBucket {
  int64_t begin = 0;
  int64_t end = 0;
  double loss_sum = 0;
  int64_t tokens = 0;
};

struct Evaluation {
  double loss_sum = 0;                  // natural log
  int64_t tokens = 0;                   // with a target
  std::vector<PositionBucket> buckets;  // ascending, without gaps; [0, 64), then doubling

  double loss() const;  // mean; 0 without tokens
  double perplexity() const;
};

// What of an evaluation a rank computes.
struct EvaluationShare {
  int replicas = 1;  // that the samples are dealt to
  int replica = 0;
  bool counts = true;  // whether no other rank has the same losses of the same tokens
};

// Fills, on ranks that have them, (*losses)[i] for the tokens of batches[i]: this replica's samples
// of a round, one a pass, some without tokens. `losses` has their number.
using ScoreRound = std::function<absl::Status(int64_t round, absl::Span<const PackedBatch> batches,
                                              std::vector<TokenLosses>* losses)>;

// Scores the samples, which are dealt to share.replicas, with one call of `score` a round on every
// rank. Every rank of `comm` must call it; all get the same result.
absl::StatusOr<Evaluation> Evaluate(const IndexedDataset& dataset, const EvaluationSamples& samples,
                                    const EvaluationShare& share, Communicator& comm,
                                    const ScoreRound& score);

// The same by passes of `run` in which each replica computes its own attention. Scores the pieces
// of SequentialOrder: each document from its start on, in pieces of at most `sequence_length`
// tokens; with max_samples > 0 only so many, evenly spread over the data set. The result does not
// depend on the number of replicas.
absl::StatusOr<Evaluation> Evaluate(PipelineRun& run, const IndexedDataset& dataset,
                                    int64_t sequence_length, int64_t max_samples,
                                    const EvaluationShare& share, Communicator& comm);

// A table of the buckets.
std::string RenderBuckets(const Evaluation& evaluation);

}  // namespace evenkeel
