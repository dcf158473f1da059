#include "launch/evaluation.h"

#include <cmath>

#include "absl/strings/str_format.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/agreement.h"
#include "runtime/data/sample_reader.h"
#include "runtime/metrics/human_format.h"
#include "runtime/metrics/text_table.h"

namespace evenkeel {
namespace {

constexpr int64_t kFirstBucket = 64;

std::vector<PositionBucket> MakeBuckets(int64_t longest) {
  std::vector<PositionBucket> buckets;
  for (int64_t begin = 0, end = kFirstBucket; begin < longest; begin = end, end *= 2) {
    PositionBucket bucket;
    bucket.begin = begin;
    bucket.end = end;
    buckets.push_back(bucket);
  }
  return buckets;
}

// A replica's samples of a round, the same on all its ranks, which agree on whether all were read:
// others compute attention for documents of these lengths.
absl::StatusOr<std::vector<PackedBatch>> ReadRound(const IndexedDataset& dataset,
                                                   const EvaluationSamples& samples, int64_t round,
                                                   int replica, Communicator& comm) {
  const auto [first, end] = samples.PassesOf(round);
  std::vector<PackedBatch> batches(static_cast<size_t>(end - first));
  absl::Status status;
  for (int64_t pass = first; pass < end && status.ok(); ++pass) {
    const int64_t sample = samples.SampleOf(pass, replica);
    if (sample < 0) continue;
    status =
        AppendSample(dataset, samples.Pieces(sample), &batches[static_cast<size_t>(pass - first)]);
  }
  EK_RETURN_IF_ERROR(AgreeOnStatus(comm, status, "evaluation data"));
  return batches;
}

// row: [loss, tokens] a bucket.
void AddLosses(const TokenLosses& tokens, absl::Span<const PositionBucket> buckets,
               absl::Span<double> row) {
  for (size_t t = 0, bucket = 0; t < tokens.losses.size(); ++t) {
    if (tokens.positions[t] < buckets[bucket].begin) bucket = 0;
    while (tokens.positions[t] >= buckets[bucket].end) ++bucket;
    if (tokens.targets[t] == kIgnoredTarget) continue;
    row[2 * bucket] += tokens.losses[t];
    row[2 * bucket + 1] += 1;
  }
}

}  // namespace

double Evaluation::loss() const {
  return tokens > 0 ? loss_sum / static_cast<double>(tokens) : 0;
}

double Evaluation::perplexity() const {
  return std::exp(loss());
}

absl::StatusOr<Evaluation> Evaluate(const IndexedDataset& dataset, const EvaluationSamples& samples,
                                    const EvaluationShare& share, Communicator& comm,
                                    const ScoreRound& score) {
  // One row a sample: [loss of bucket 0, tokens of bucket 0, ...]. The rows are summed over
  // ranks (all but those with the sample's tokens are zero) and then added up in order, so the
  // number of replicas changes nothing.
  Evaluation result;
  result.buckets = MakeBuckets(samples.sequence_length());
  const size_t width = 2 * result.buckets.size();
  std::vector<double> rows(static_cast<size_t>(samples.count()) * width, 0.0);
  for (int64_t round = 0; round < samples.num_rounds(); ++round) {
    const auto [first, end] = samples.PassesOf(round);
    EK_ASSIGN_OR_RETURN(const std::vector<PackedBatch> batches,
                        ReadRound(dataset, samples, round, share.replica, comm));
    std::vector<TokenLosses> losses(batches.size());
    EK_RETURN_IF_ERROR(score(round, batches, &losses));
    for (int64_t pass = first; pass < end && share.counts; ++pass) {
      const int64_t sample = samples.SampleOf(pass, share.replica);
      if (sample < 0) continue;
      AddLosses(losses[static_cast<size_t>(pass - first)], result.buckets,
                absl::MakeSpan(rows).subspan(static_cast<size_t>(sample) * width, width));
    }
  }
  EK_RETURN_IF_ERROR(
      comm.AllReduce(TensorView(rows.data(), DType::kF64, {static_cast<int64_t>(rows.size())}),
                     ReduceOp::kSum, "evaluation losses"));
  for (int64_t i = 0; i < samples.count(); ++i) {
    const double* row = rows.data() + static_cast<size_t>(i) * width;
    for (size_t b = 0; b < result.buckets.size(); ++b) {
      result.buckets[b].loss_sum += row[2 * b];
      result.buckets[b].tokens += static_cast<int64_t>(row[2 * b + 1]);
      result.loss_sum += row[2 * b];
      result.tokens += static_cast<int64_t>(row[2 * b + 1]);
    }
  }
  return result;
}

absl::StatusOr<Evaluation> Evaluate(PipelineRun& run, const IndexedDataset& dataset,
                                    int64_t sequence_length, int64_t max_samples,
                                    const EvaluationShare& share, Communicator& comm) {
  EK_ASSIGN_OR_RETURN(const EvaluationSamples samples,
                      EvaluationSamples::Create(dataset.document_lengths(), sequence_length,
                                                max_samples, share.replicas, /*stages=*/1));
  return Evaluate(dataset, samples, share, comm,
                  [&run](int64_t, absl::Span<const PackedBatch> batches,
                         std::vector<TokenLosses>* losses) { return run.Losses(batches, losses); });
}

std::string RenderBuckets(const Evaluation& evaluation) {
  TextTable table({{"positions", TextColumn::Align::kLeft}, {"tokens"}, {"loss"}, {"perplexity"}});
  const auto add = [&](const std::string& name, int64_t tokens, double loss_sum) {
    const double loss = loss_sum / static_cast<double>(tokens);
    table.AddRow({name, FormatCount(static_cast<double>(tokens)), absl::StrFormat("%.4f", loss),
                  absl::StrFormat("%.3f", std::exp(loss))});
  };
  for (const PositionBucket& bucket : evaluation.buckets) {
    if (bucket.tokens == 0) continue;
    add(absl::StrFormat("%d to %d", bucket.begin, bucket.end - 1), bucket.tokens, bucket.loss_sum);
  }
  if (evaluation.tokens > 0) {
    table.AddRule();
    add("all", evaluation.tokens, evaluation.loss_sum);
  }
  return table.Render();
}

}  // namespace evenkeel
