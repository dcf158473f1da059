#include "scheduler/comm_volume.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "scheduler/unit_traffic.h"

namespace evenkeel {
namespace {

double AllReduced(int64_t bytes, int ranks) {
  return 2.0 * static_cast<double>(bytes) * (ranks - 1) / ranks;
}

// Adds up what one rank sends in a step.
class VolumeCount {
 public:
  VolumeCount(const ModelShape& shape, const RankLayout& layout, const ComputeShape& compute,
              RecomputePlan recompute)
      : shape_(shape), layout_(layout), compute_(compute), recompute_(recompute) {}

  void AddMicroBatch(const MicroBatchTokens& tokens) {
    const int tp = layout_.mesh.tp;
    mine_ = tokens.mine(layout_);
    const int64_t chunk = ChunkRows(layout_, tokens, compute_.token_chunks);
    stream_ = StreamRows(mine_, chunk, tp, layout_.coord.tp);
    // Empty micro-batches pass through the pipeline, too, as nothing.
    if (tokens.all == 0) return;
    AddStages();
    if (tp > 1) AddTensorParallel();
    if (layout_.mesh.cp == 1) return;
    const int forwards = recompute_ == RecomputePlan::kLayer ? 2 : 1;
    for (const LayerShape& layer : shape_.layers) {
      if (layer.is_linear) {
        AddStates(layer, tokens, forwards);
      } else if (layer.block_size > 0 || layout_.context.softmax == SoftmaxExchange::kGather) {
        AddGather(layer, tokens, forwards);
      } else if (layout_.pools_attention()) {
        continue;  // what documents make of it: `evenkeel plan --lengths`
      } else if (layout_.context.softmax == SoftmaxExchange::kRing) {
        AddRing(layer, tokens, forwards);
      } else {
        AddUlysses(layer, tokens, forwards);
      }
    }
  }

  // Once a step: weights, gradients and their norm.
  void AddUpdate(int64_t micro_batches) {
    const int ranks = layout_.data_ranks();
    const bool is_sharded = layout_.stage() != ShardingStage::kNone;
    if (ranks > 1) {
      const UnitTraffic traffic = UnitTrafficOf(shape_, layout_, micro_batches);
      Add("data", "all-gather", traffic.gathered * (ranks - 1) * compute_.element_bytes);
      Add("data", "reduce-scatter", traffic.reduced / ranks * (ranks - 1) * compute_.wide_bytes);
      Add("data", "all-reduce", AllReduced(traffic.all_reduced * compute_.wide_bytes, ranks));
      if (is_sharded) Add("data", "all-reduce", AllReduced(kNormBytes, ranks));
    }
    const int tp = layout_.mesh.tp, pp = layout_.mesh.pp, copies = layout_.key_value_copies;
    const auto owned = OwnedRanges(shape_.unit_begin, layout_.stage(), ranks, layout_.data_place());
    if (tp > 1) {
      Add("tp", "all-reduce", AllReduced(OwnedOfShared(owned, false) * compute_.wide_bytes, tp));
      Add("tp", "all-reduce", AllReduced(kNormBytes, tp));
    }
    if (copies > 1) {
      Add("key/value", "all-reduce",
          AllReduced(OwnedOfShared(owned, true) * compute_.wide_bytes, copies));
    }
    if (pp == 1) return;
    Add("pp", "all-reduce", AllReduced(kNormBytes, pp));
    if (shape_.ties_embedding && (shape_.is_first || shape_.is_last)) {
      Add("tied embedding", "all-reduce", AllReduced(owned[1].count * compute_.wide_bytes, 2));
    }
  }

  CommVolume Take() { return std::move(volume_); }

 private:
  static constexpr int64_t kNormBytes = 8;  // the sum of squares

  void Add(const char* axis, const char* op, double bytes) {
    if (bytes > 0) volume_[{axis, op}] += bytes;
  }
  void Add(const char* axis, const char* op, int64_t bytes) {
    Add(axis, op, static_cast<double>(bytes));
  }

  // Owned elements that tensor-parallel ranks hold alike.
  int64_t OwnedOfShared(const std::vector<RowRange>& owned, bool is_key_value) const {
    int64_t count = 0;
    for (const SharedRange& shared : shape_.shared) {
      if (shared.is_key_value != is_key_value) continue;
      for (const RowRange& range : owned) {
        count += std::max<int64_t>(
            0, std::min(shared.end, range.from + range.count) - std::max(shared.begin, range.from));
      }
    }
    return count;
  }

  // Activations on to the next stage, their gradients back.
  void AddStages() {
    if (layout_.mesh.pp == 1) return;
    const auto chunks = static_cast<int64_t>(shape_.chunks.size());
    const int64_t bytes = stream_ * shape_.hidden_size * compute_.element_bytes;
    Add("pp forward", "send", (chunks - (shape_.is_last ? 1 : 0)) * bytes);
    Add("pp backward", "send", (chunks - (shape_.is_first ? 1 : 0)) * bytes);
  }

  // Gathers of shares of the stream before products, scatters of partial sums after them.
  void AddTensorParallel() {
    const int tp = layout_.mesh.tp;
    const auto layers = static_cast<int64_t>(shape_.layers.size());
    // A layer forward: inputs of attention and feed-forward gathered, outputs of both scattered.
    // Backward: gathered the input of attention, the gradient of the output, the feed-forward's
    // input, and the gradient in the middle; scattered the gradients of both inputs.
    int64_t gathers = 6 * layers, scatters = 4 * layers;
    if (recompute_ != RecomputePlan::kNone) scatters += layers;  // the output of attention again
    if (ComputesProjectionAgain(recompute_)) gathers += layers;  // the input of attention again
    // The embedding's output and its gradient; the head's input and its gradient.
    gathers += shape_.is_first + shape_.is_last;
    scatters += shape_.is_first + shape_.is_last;
    const int64_t row = shape_.hidden_size * compute_.element_bytes;
    Add("tp", "all-gather", gathers * stream_ * row * (tp - 1));
    Add("tp", "reduce-scatter", scatters * (mine_ - stream_) * row);
    if (shape_.is_last) {
      constexpr int64_t kStatistics = 3;  // of a row of logits
      Add("tp", "all-gather", mine_ * kStatistics * compute_.loss_bytes() * (tp - 1));
    }
    // A sum over all heads a token for a norm that spans the ranks, another for its gradient.
    for (const LayerShape& layer : shape_.layers) {
      if (!layer.has_output_norm) continue;
      const int sums = recompute_ == RecomputePlan::kLayer ? 3 : 2;
      Add("tp", "all-reduce", sums * AllReduced(mine_ * compute_.wide_bytes, tp));
    }
  }

  void AddGather(const LayerShape& layer, const MicroBatchTokens& tokens, int forwards) {
    // Keys and values are gathered again in the backward pass.
    Add("cp", "all-gather",
        (forwards + 1) * mine_ * layer.kv_width() * compute_.element_bytes * (layout_.mesh.cp - 1));
    const int64_t bytes = layer.is_relu() ? compute_.element_bytes : compute_.wide_bytes;
    Add("cp", "reduce-scatter", (tokens.all - mine_) * layer.kv_width() * bytes);
  }

  // In n - 1 steps this rank sends its own keys and values and those of all others but its
  // successor's; gradients go once more, to come home.
  void AddRing(const LayerShape& layer, const MicroBatchTokens& tokens, int forwards) {
    const int next = (layout_.coord.cp + 1) % layout_.mesh.cp;
    const int64_t passed = tokens.all - tokens.rows[static_cast<size_t>(next)];
    Add("cp", "send",
        layer.kv_width() *
            ((forwards + 1) * passed * compute_.element_bytes + tokens.all * compute_.wide_bytes));
  }

  void AddUlysses(const LayerShape& layer, const MicroBatchTokens& tokens, int forwards) {
    const int ranks = layout_.mesh.cp;
    const int64_t q_heads = std::max<int64_t>(1, layer.num_heads / ranks);
    const int64_t kv_heads = std::max<int64_t>(1, layer.num_kv_heads / ranks);
    const int64_t element = compute_.element_bytes, wide = compute_.wide_bytes;
    const int64_t inputs =
        (q_heads * layer.qk_size + kv_heads * (layer.qk_size + layer.v_size)) * element;
    const int64_t out = q_heads * layer.v_size * element, lse = q_heads * wide;
    const int64_t to_heads = (ranks - 1) * mine_, to_tokens = tokens.all - mine_;
    const int64_t forward = to_heads * inputs + to_tokens * (out + lse);
    const int64_t backward = to_heads * (inputs + 2 * out + lse) + to_tokens * inputs;
    Add("cp", "all-to-all", forwards * forward + backward);
  }

  // States forward, their gradients backward: as many as pieces are cut, whatever their lengths.
  void AddStates(const LayerShape& layer, const MicroBatchTokens& tokens, int forwards) {
    const int64_t states = forwards * tokens.pieces_after + tokens.pieces_before;
    const int64_t bytes = states * layer.state_size() * compute_.wide_bytes;
    if (layout_.context.states == StateExchange::kScan) return Add("cp", "send", bytes);
    Add("cp", "all-gather", bytes * (layout_.mesh.cp - 1));
  }

  const ModelShape& shape_;
  const RankLayout& layout_;
  const ComputeShape& compute_;
  RecomputePlan recompute_;
  int64_t mine_ = 0;    // tokens of the micro-batch that this rank's core attention sees
  int64_t stream_ = 0;  // of them, those whose stream it holds
  CommVolume volume_;
};

}  // namespace

CommVolume StepVolume(const ModelShape& shape, const RankLayout& layout,
                      const ComputeShape& compute, RecomputePlan recompute,
                      absl::Span<const MicroBatchTokens> micro_batches) {
  VolumeCount count(shape, layout, compute, recompute);
  for (const MicroBatchTokens& tokens : micro_batches) count.AddMicroBatch(tokens);
  count.AddUpdate(static_cast<int64_t>(micro_batches.size()));
  return count.Take();
}

double TotalBytes(const CommVolume& volume) {
  double total = 0;
  for (const auto& [_, bytes] : volume) total += bytes;
  return total;
}

}  // namespace evenkeel
