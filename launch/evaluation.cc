#include "launch/evaluation.h"

#include <cmath>

#include "absl/strings/str_format.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/agreement.h"
#include "runtime/data/sample_order.h"
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

}  // namespace

double Evaluation::loss() const {
  return tokens > 0 ? loss_sum / static_cast<double>(tokens) : 0;
}

double Evaluation::perplexity() const {
  return std::exp(loss());
}

absl::StatusOr<Evaluation> Evaluate(PipelineRun& run, const IndexedDataset& dataset,
                                    int64_t sequence_length, int64_t max_samples,
                                    const EvaluationShare& share, Communicator& comm) {
  EK_ASSIGN_OR_RETURN(const SequentialOrder order,
                      SequentialOrder::Create(dataset.document_lengths(), sequence_length));
  const int64_t total = order.num_samples();
  const int64_t count = max_samples > 0 && max_samples < total ? max_samples : total;
  // One row a sample: [tokens, loss of bucket 0, tokens of bucket 0, ...]. The rows are summed over
  // ranks (all but those with the sample's tokens are zero) and then added up in order, so the
  // number of replicas changes nothing.
  Evaluation result;
  result.buckets = MakeBuckets(sequence_length);
  const size_t width = 2 * result.buckets.size();
  std::vector<double> rows(static_cast<size_t>(count) * width, 0.0);
  absl::Status status;
  // Replicas that share parameters make equally many passes: the last may be without tokens.
  for (int64_t first = 0; first < count; first += share.replicas) {
    const int64_t i = first + share.replica;
    PackedBatch batch;
    if (i < count && status.ok()) {
      status = AppendSample(dataset, order.Sample(i * total / count), &batch);
      if (!status.ok()) batch.Clear();
    }
    TokenLosses tokens;
    EK_RETURN_IF_ERROR(run.Losses(batch, &tokens));
    if (i >= count || !share.counts) continue;
    double* row = rows.data() + static_cast<size_t>(i) * width;
    for (size_t t = 0, bucket = 0; t < tokens.losses.size(); ++t) {
      if (tokens.positions[t] < result.buckets[bucket].begin) bucket = 0;
      while (tokens.positions[t] >= result.buckets[bucket].end) ++bucket;
      if (tokens.targets[t] == kIgnoredTarget) continue;
      row[2 * bucket] += tokens.losses[t];
      row[2 * bucket + 1] += 1;
    }
  }
  EK_RETURN_IF_ERROR(AgreeOnStatus(comm, status, "evaluation data"));
  EK_RETURN_IF_ERROR(
      comm.AllReduce(TensorView(rows.data(), DType::kF64, {static_cast<int64_t>(rows.size())}),
                     ReduceOp::kSum, "evaluation losses"));
  for (int64_t i = 0; i < count; ++i) {
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
