#include "models/model_head.h"

#include <algorithm>
#include <cmath>

#include "models/block_chunks.h"
#include "models/row_parallel.h"
#include "runtime/ops/cross_entropy.h"
#include "runtime/ops/cross_entropy_slices.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/embedding.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/norm.h"

namespace evenkeel {
namespace {

double EmbeddingScale(const ModelConfig& config) {
  return config.scale_embedding ? std::sqrt(static_cast<double>(config.hidden_size)) : 1.0;
}

// cuBLASLt and vector loads want rows aligned, whatever the vocabulary.
TensorView AllocateLogits(const OpContext& context, int64_t rows, int64_t vocab) {
  const int64_t width = context.cuda == nullptr ? vocab : (vocab + 7) / 8 * 8;
  return Workspace(context, {rows, width}).Columns(0, vocab);
}

// Final norm and head over the tokens, a chunk of logits at a time. Alone, a chunk of tokens is a
// chunk of logits; several ranks gather a chunk of tokens and make their slices of its logits.
class HeadPass {
 public:
  HeadPass(const OpContext& context, const ModelConfig& config, const ModelPart& part,
           const HeadViews<ConstTensorView>& weights, ConstTensorView y, const TokenShards& stream,
           Indices targets)
      : context_(context),
        config_(config),
        weights_(weights),
        y_(y),
        targets_(Mirror(context, targets)),
        vocab_(SliceOf(config.vocab_size, part.tp, part.tp_rank)),
        logits_rows_(LogitsChunk(context.device(), vocab_.size())),
        shards_(stream.is_alone() ? TokenShards(stream.num_tokens(), logits_rows_, nullptr)
                                  : stream),
        normed_rows_(context, shards_, TensorView(), config.hidden_size),
        gather_(context, shards_, config.hidden_size, "input of the head"),
        logits_(
            AllocateLogits(context, std::min(logits_rows_, shards_.max_rows()), vocab_.size())) {
    const int ranks = part.tp;
    if (shards_.is_alone()) return;
    const DType dtype = context.cuda == nullptr ? DType::kF64 : DType::kF32;
    const int64_t rows = std::min(logits_rows_, shards_.max_rows());
    statistics_ = context.arena.Allocate(dtype, {rows, 3}, MemoryPurpose::kWorkspace);
    all_statistics_ = context.arena.Allocate(dtype, {ranks * rows, 3}, MemoryPurpose::kWorkspace);
  }

  const TokenShards& shards() const { return shards_; }

  void Normalize(int64_t chunk) {
    RmsNormForward(context_, RowsOf(y_, shards_.Mine(chunk)), weights_.norm, config_.norm_eps,
                   normed_rows_(chunk));
    gather_.Start(chunk, normed_rows_(chunk));
  }

  // Calls body(rows of all tokens, normed [c, C], logits [c, V]) for each chunk of logits.
  template <typename Body>
  void ForEachLogits(int64_t chunk, const Body& body) {
    const ConstTensorView normed = gather_.Finish(chunk);
    const RowSpan whole = shards_.Whole(chunk);
    for (int64_t begin = 0; begin < whole.size(); begin += logits_rows_) {
      const int64_t end = std::min(whole.size(), begin + logits_rows_);
      const TensorView logits = logits_.Rows(0, end - begin);
      LinearForward(context_, normed.Rows(begin, end), weights_.head, logits);
      body(RowSpan{whole.begin + begin, whole.begin + end}, normed.Rows(begin, end), logits);
    }
  }

  // Losses of the rows; with `scale`, logits become their gradients.
  void Loss(RowSpan rows, const double* scale, TensorView logits, TensorView losses) {
    const Indices targets = targets_.Slice(rows.begin, rows.end);
    const TensorView chunk_losses = losses.Rows(rows.begin, rows.end);
    if (shards_.is_alone()) {
      if (scale == nullptr) return CrossEntropyForward(context_, logits, targets, chunk_losses);
      return CrossEntropyForwardBackward(context_, targets, *scale, logits, chunk_losses);
    }
    AxisComm& axis = *shards_.axis();
    const int64_t n = rows.size();
    const TensorView mine = statistics_.Rows(0, n);
    const TensorView all = all_statistics_.Rows(0, axis.size() * n);
    CrossEntropySliceStatistics(context_, logits, targets, vocab_.begin, mine);
    axis.AllGather(mine, all, std::vector<int64_t>(static_cast<size_t>(axis.size()), n),
                   "statistics of the logits");
    CrossEntropySliceGradient(context_, all.Reshape({axis.size(), n, 3}), targets, vocab_.begin,
                              scale == nullptr ? 0 : *scale,
                              scale == nullptr ? TensorView() : logits, chunk_losses);
  }

 private:
  const OpContext& context_;
  const ModelConfig& config_;
  const HeadViews<ConstTensorView>& weights_;
  ConstTensorView y_;
  Indices targets_;
  Slice vocab_;
  int64_t logits_rows_;
  TokenShards shards_;
  ChunkedRows normed_rows_;
  ChunkGather gather_;
  TensorView logits_, statistics_, all_statistics_;
};

// Tokens counted within the slice; those of other slices are kNoToken.
std::vector<int32_t> TokensInSlice(const std::vector<int32_t>& tokens, Slice slice) {
  std::vector<int32_t> result(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    const bool is_here = slice.begin <= tokens[i] && tokens[i] < slice.end;
    result[i] = is_here ? static_cast<int32_t>(tokens[i] - slice.begin) : kNoToken;
  }
  return result;
}

}  // namespace

TensorView AllocateLosses(const OpContext& context, int64_t tokens) {
  return context.arena.Allocate(context.cuda == nullptr ? DType::kF64 : DType::kF32, {tokens},
                                MemoryPurpose::kWorkspace);
}

int64_t LogitsChunk(Device device, int64_t vocab_size) {
  // On the CPU 8 Mi logits, which stay in its caches; on a GPU 256 Mi, enough for whole waves of
  // tiles.
  if (device == Device::kCpu) {
    return std::clamp<int64_t>((int64_t{1} << 23) / vocab_size, 16, 512);
  }
  return std::clamp<int64_t>((int64_t{1} << 28) / vocab_size / 256 * 256, 256, 16384);
}

void EmbedTokens(const OpContext& context, const ModelConfig& config, ConstTensorView table,
                 Indices tokens, TensorView x) {
  EmbeddingForward(context, table, tokens, EmbeddingScale(config), x);
  if (config.embedding_norm) RmsNormForward(context, x, ConstTensorView(), config.norm_eps, x);
}

void EmbedForward(const OpContext& context, const ModelConfig& config, const ModelPart& part,
                  ConstTensorView table, StagePass& pass) {
  const TokenShards& shards = pass.layout.shards;
  const double scale = EmbeddingScale(config);
  const TensorView out = pass.embedded.empty() ? pass.x : pass.embedded;
  if (shards.is_alone()) {
    EmbeddingForward(context, table, Mirror(context, Indices(pass.tokens().tokens)), scale, out);
  } else {
    const ArenaScope scope(context.arena);
    pass.slice_tokens =
        TokensInSlice(pass.tokens().tokens, SliceOf(config.vocab_size, part.tp, part.tp_rank));
    const Indices ids = Mirror(context, Indices(pass.slice_tokens));
    ChunkScatter scatter(context, shards, config.hidden_size, "embeddings");
    const auto embed = [&](int64_t chunk) {
      const RowSpan rows = shards.Whole(chunk);
      EmbeddingForward(context, table, ids.Slice(rows.begin, rows.end), scale,
                       scatter.Partial(chunk));
      scatter.Start(chunk, RowsOf(out, shards.Mine(chunk)));
    };
    RunStages(shards, {{1, [&](int64_t chunk) { scatter.Finish(chunk); }}, {0, embed}});
  }
  if (config.embedding_norm) {
    RmsNormForward(context, out, ConstTensorView(), config.norm_eps, pass.x);
  }
}

void EmbedBackward(const OpContext& context, const ModelConfig& config, TensorView dtable,
                   StagePass& pass) {
  const TokenShards& shards = pass.layout.shards;
  const double scale = EmbeddingScale(config);
  if (config.embedding_norm) {
    RmsNormBackward(context, pass.embedded, ConstTensorView(), config.norm_eps, pass.dx, pass.dx,
                    /*accumulate=*/false, TensorView());
  }
  if (shards.is_alone()) {
    return EmbeddingBackward(context, pass.tokens().tokens, scale, pass.dx, dtable);
  }
  const ArenaScope scope(context.arena);
  ChunkGather gather(context, shards, config.hidden_size, "gradient of the embeddings");
  const auto start = [&](int64_t chunk) {
    gather.Start(chunk, RowsOf(pass.dx, shards.Mine(chunk)));
  };
  const auto add = [&](int64_t chunk) {
    const RowSpan rows = shards.Whole(chunk);
    EmbeddingBackward(context, Indices(pass.slice_tokens).Slice(rows.begin, rows.end), scale,
                      gather.Finish(chunk), dtable);
  };
  RunStages(shards, {{0, start}, {1, add}});
}

void HeadForwardBackward(const OpContext& context, const ModelConfig& config, const ModelPart& part,
                         const HeadViews<ConstTensorView>& weights,
                         const HeadViews<TensorView>& gradients, double loss_scale,
                         TensorView loss_sum, StagePass& pass) {
  const ArenaScope scope(context.arena);
  const TensorView losses = AllocateLosses(context, pass.layout.shards.num_tokens());
  HeadPass head(context, config, part, weights, pass.y, pass.layout.shards, pass.tokens().targets);
  const TokenShards& shards = head.shards();
  const ChunkedRows dnormed_rows(context, shards, TensorView(), config.hidden_size);
  ChunkScatter scatter(context, shards, config.hidden_size, "gradient of the head");
  const auto multiply = [&](int64_t chunk) {
    const int64_t begin = shards.Whole(chunk).begin;
    const TensorView dnormed = shards.is_alone() ? dnormed_rows(chunk) : scatter.Partial(chunk);
    head.ForEachLogits(chunk, [&](RowSpan rows, ConstTensorView normed, TensorView logits) {
      head.Loss(rows, &loss_scale, logits, losses);
      LinearBackwardWeight(context, logits, normed, gradients.head);
      LinearBackwardInput(context, logits, weights.head,
                          dnormed.Rows(rows.begin - begin, rows.end - begin));
    });
    if (!shards.is_alone()) scatter.Start(chunk, dnormed_rows(chunk));
  };
  const auto finish = [&](int64_t chunk) {
    if (!shards.is_alone()) scatter.Finish(chunk);
    RmsNormBackward(context, RowsOf(pass.y, shards.Mine(chunk)), weights.norm, config.norm_eps,
                    dnormed_rows(chunk), RowsOf(pass.dx, shards.Mine(chunk)),
                    /*accumulate=*/false, gradients.norm);
  };
  RunStages(shards,
            {{0, [&](int64_t chunk) { head.Normalize(chunk); }}, {2, finish}, {1, multiply}});
  AddSum(context, losses, loss_sum);
}

void HeadForward(const OpContext& context, const ModelConfig& config, const ModelPart& part,
                 const HeadViews<ConstTensorView>& weights, const StagePass& pass,
                 TensorView losses) {
  const ArenaScope scope(context.arena);
  HeadPass head(context, config, part, weights, pass.y, pass.layout.shards, pass.tokens().targets);
  RunStages(head.shards(), {{0, [&](int64_t chunk) { head.Normalize(chunk); }},
                            {1, [&](int64_t chunk) {
                               head.ForEachLogits(
                                   chunk, [&](RowSpan rows, ConstTensorView, TensorView logits) {
                                     head.Loss(rows, nullptr, logits, losses);
                                   });
                             }}});
}

void HeadLogits(const OpContext& context, const ModelConfig& config,
                const HeadViews<ConstTensorView>& weights, ConstTensorView y, TensorView logits) {
  const ArenaScope scope(context.arena);
  const TokenShards stream(y.dim(0), 1, nullptr);
  const std::vector<int32_t> no_targets;
  HeadPass head(context, config, ModelPart(), weights, y, stream, Indices(no_targets));
  for (int64_t chunk = 0; chunk < head.shards().num_chunks(); ++chunk) {
    head.Normalize(chunk);
    head.ForEachLogits(chunk, [&](RowSpan rows, ConstTensorView, TensorView part) {
      Copy(context, part, logits.Rows(rows.begin, rows.end));
    });
  }
}

}  // namespace evenkeel
