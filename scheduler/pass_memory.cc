#include "scheduler/pass_memory.h"

#include <algorithm>
#include <vector>

#include "parallel/sequence_layout.h"
#include "scheduler/core_memory.h"
#include "scheduler/memory_meter.h"
#include "scheduler/server_memory.h"

namespace evenkeel {
namespace {

// Buffers that rows wait in between the stages of a walk over chunks (models/block_chunks.h).
constexpr int64_t kChunksInFlight = 3;
// Buffers of a gather or scatter of chunks (parallel/token_shards.h).
constexpr int64_t kTravelBuffers = 2;
constexpr int64_t kLogitStatistics = 3;

// The allocations of one pass, in their order.
class PassReplay {
 public:
  PassReplay(const ModelShape& shape, const RankLayout& layout, const MicroBatchTokens& tokens,
             const ComputeShape& compute, RecomputePlan recompute)
      : shape_(shape),
        layout_(layout),
        tokens_(tokens),
        compute_(compute),
        recompute_(recompute),
        tp_(layout.mesh.tp),
        mine_(tokens.mine(layout)),
        stream_(StreamRows(mine_, ChunkRows(layout, tokens, compute.token_chunks), tp_,
                           layout.coord.tp)),
        chunk_(std::min(ChunkRows(layout, tokens, compute.token_chunks),
                        layout.context.split == SequenceSplit::kHalves ? FirstHalf(mine_) : mine_)),
        width_(shape.hidden_size) {}

  PassMemory Run(int chunk) {
    const bool begins = shape_.is_first && chunk == 0;
    const bool ends = shape_.is_last && chunk + 1 == static_cast<int>(shape_.chunks.size());
    const ChunkShape& layers = shape_.chunks[static_cast<size_t>(chunk)];
    AddWide(mine_ * shape_.rotary_size);
    if (begins && shape_.keeps_embedding) Add(stream_ * width_);
    Add(2 * stream_ * width_);  // x and dx
    if (begins) Travel();
    std::vector<int64_t> marks;
    for (int64_t layer = layers.begin; layer < layers.end; ++layer) {
      marks.push_back(meter_.now());
      Add(stream_ * width_);
      Forward(LayerOf(layer));
    }
    const int64_t kept = meter_.now();
    if (ends) Head();
    for (int64_t layer = layers.end; layer-- > layers.begin;) {
      Backward(LayerOf(layer));
      meter_.Release(marks[static_cast<size_t>(layer - layers.begin)]);
    }
    if (begins) Travel();
    return {kept, meter_.peak(), PoolBytes()};
  }

 private:
  const LayerShape& LayerOf(int64_t layer) const {
    return shape_.layers[static_cast<size_t>(layer)];
  }
  bool IsPooled(const LayerShape& layer) const {
    return layout_.pools_attention() && !layer.is_linear && layer.block_size == 0;
  }
  bool keeps_norms() const { return compute_.is_gpu && recompute_ == RecomputePlan::kNone; }
  bool keeps_mlp() const { return recompute_ == RecomputePlan::kNone; }

  void Add(int64_t elements) { meter_.Add(elements * compute_.element_bytes); }
  void AddWide(int64_t elements) { meter_.Add(elements * compute_.wide_bytes); }
  // Weights and operands in FP8, a byte each (models/linear.h): where there is FP8.
  void AddFp8(int64_t elements) {
    if (compute_.fp8) meter_.Add(elements);
  }
  // Operands of one product after the other: the most that any of them takes.
  void AddFp8Operands(int64_t elements) {
    const MeterScope scope(meter_);
    AddFp8(elements);
  }
  // Buffers of so many gathers and scatters of chunks of the stream.
  void AddTravel(int64_t count) {
    if (tp_ > 1) Add(count * kTravelBuffers * chunk_ * width_);
  }
  void Travel() {
    const MeterScope scope(meter_);
    AddTravel(1);
  }
  // Rows of the stream for the chunks in flight.
  void AddChunkedRows(int64_t chunk_rows) {
    Add((tp_ > 1 ? kChunksInFlight : 1) * ((chunk_rows + tp_ - 1) / tp_) * width_);
  }

  void KeepCore(const LayerShape& layer) {
    Add(mine_ * layer.out_width);
    if (layer.has_lse) AddWide(mine_ * layer.num_heads);
    if (layer.is_linear && layout_.mesh.cp > 1) {
      AddWide(tokens_.pieces_before * layer.state_size());
    }
    if (layer.has_output_norm && tp_ > 1) AddWide(mine_);
  }

  void Project(const LayerShape& layer) {
    const MeterScope scope(meter_);
    if (!keeps_norms()) AddChunkedRows(chunk_);
    AddTravel(1);
    AddFp8(width_ * layer.projection_width);
    AddFp8Operands(chunk_ * width_);
  }

  void AttentionForward(const LayerShape& layer) {
    Project(layer);
    const MeterScope scope(meter_);
    Add(mine_ * layer.copied_qk_width);
    if (layer.widens_qk && !compute_.is_gpu) {
      const MeterScope activated(meter_);
      Add(mine_ * layer.out_width);
    }
    if (!IsPooled(layer)) meter_.Add(CoreForwardBytes(layer, layout_, tokens_, compute_));
  }

  // What enters the output projection, and, where it is made of a norm and a gate, the norm.
  void AddOutputMix(const LayerShape& layer) {
    if (!layer.has_output_norm) return;
    Add(chunk_ * layer.out_width);
    if (layer.gated && tp_ == 1 && !compute_.is_gpu) Add(chunk_ * layer.out_width);
  }

  void Forward(const LayerShape& layer) {
    const int64_t before = meter_.now();
    KeepCore(layer);
    const int64_t kept =
        recompute_ == RecomputePlan::kLayer && !IsPooled(layer) ? before : meter_.now();
    // Of a pooled layer a projection that is not kept is in the pool's arena.
    if (!IsPooled(layer) || !ComputesProjectionAgain(recompute_)) {
      Add(mine_ * layer.projection_width);
    }
    if (keeps_mlp()) Add(stream_ * width_ + 2 * mine_ * layer.intermediate_size);
    if (keeps_norms()) Add(2 * stream_ * width_);
    AttentionForward(layer);
    {
      const MeterScope scope(meter_);
      AddOutputMix(layer);
      if (!keeps_mlp()) AddChunkedRows(chunk_);
      if (!keeps_norms()) AddChunkedRows(chunk_);
      Add(chunk_ * ((keeps_mlp() ? 0 : 2) + (compute_.fp8 ? 0 : 1)) * layer.intermediate_size);
      AddTravel(3);
      AddFp8(width_ * (layer.out_width + 3 * layer.intermediate_size));
      AddFp8Operands(chunk_ * std::max(layer.out_width, width_ + layer.intermediate_size));
    }
    if (ComputesProjectionAgain(recompute_)) meter_.Release(kept);
  }

  void Backward(const LayerShape& layer) {
    const MeterScope scope(meter_);
    if (IsPooled(layer)) return PooledBackward(layer);
    if (ComputesProjectionAgain(recompute_)) {
      const bool keeps_core = recompute_ == RecomputePlan::kAllButAttention;
      if (!keeps_core) KeepCore(layer);
      Add(mine_ * layer.projection_width);
      keeps_core ? Project(layer) : AttentionForward(layer);
    }
    Add(mine_ * layer.projection_width);
    {
      const MeterScope core(meter_);
      Add(mine_ * layer.out_width);
      PostAttentionBackward(layer);
      Add((layer.widens_qk ? 2 : 1) * mine_ * layer.copied_qk_width);
      {
        const MeterScope attention(meter_);
        meter_.Add(CoreBackwardBytes(layer, layout_, tokens_, compute_));
      }
      // q before it is widened.
      if (layer.widens_qk && !compute_.is_gpu) Add(mine_ * layer.out_width);
    }
    if (!keeps_norms()) AddChunkedRows(chunk_);
    AddChunkedRows(chunk_);
    AddTravel(2);
    AddFp8Projection(layer);
  }

  // Of the gradients of an input projection: its weight, the gradient in both layouts, the input.
  void AddFp8Projection(const LayerShape& layer) {
    AddFp8(width_ * layer.projection_width);
    AddFp8Operands(chunk_ * (2 * layer.projection_width + width_));
  }

  // Gradients of projections and of the output are in the pool's arena.
  void PooledBackward(const LayerShape& layer) {
    PostAttentionBackward(layer);
    {
      const MeterScope scope(meter_);
      Add(mine_ * layer.copied_qk_width);
    }
    if (!keeps_norms()) AddChunkedRows(chunk_);
    AddChunkedRows(chunk_);
    AddTravel(2);
    AddFp8Projection(layer);
  }

  // In the backward pass, which needs more than the forward pass: gradients of two layers'
  // projections, one of them open, projections if these are computed again, the gradient of the
  // output, and buffers.
  int64_t PoolBytes() const {
    if (!layout_.pools_attention()) return 0;
    int64_t width = 0;
    for (const LayerShape& layer : shape_.layers) {
      if (IsPooled(layer)) width = layer.projection_width;
    }
    const int64_t projections = ComputesProjectionAgain(recompute_) ? 4 : 2;
    return mine_ * (projections * width + shape_.pooled->out_width) * compute_.element_bytes +
           ServerBufferBytes(*shape_.pooled, layout_, tokens_, compute_, PoolRole::kMesh);
  }

  void PostAttentionBackward(const LayerShape& layer) {
    {
      const MeterScope scope(meter_);
      AddOutputMix(layer);
      if (!keeps_mlp()) AddChunkedRows(chunk_);
      if (!keeps_norms()) AddChunkedRows(chunk_);
      AddChunkedRows(chunk_);
      // The gradient of both branches is in FP8 alone, where no bias wants it otherwise.
      const bool in_fp8_alone = compute_.fp8 && !layer.has_mlp_bias;
      Add(chunk_ * ((keeps_mlp() ? 3 : 5) - (in_fp8_alone ? 2 : 0)) * layer.intermediate_size);
      AddTravel(5);
      const int64_t layouts = keeps_mlp() ? 1 : 2;
      AddFp8(width_ *
             (layouts * (layer.out_width + 2 * layer.intermediate_size) + layer.intermediate_size));
      AddFp8Operands(chunk_ * ((2 + layouts) * width_ + 5 * layer.intermediate_size));
    }
    if (layer.has_output_norm && tp_ > 1) {
      const MeterScope scope(meter_);
      AddWide(mine_);
    }
  }

  // Logits, the head's input and its gradient; a loss a token. Alone, a chunk of tokens is one of
  // logits.
  void Head() {
    const MeterScope scope(meter_);
    const int64_t rows = std::min(compute_.logits_rows, tp_ > 1 ? chunk_ : mine_);
    const int64_t chunk = tp_ > 1 ? chunk_ : rows;
    const int64_t columns = compute_.is_gpu ? (shape_.vocab_size + 7) / 8 * 8 : shape_.vocab_size;
    meter_.Add(mine_ * compute_.loss_bytes());
    Add(rows * columns);
    AddChunkedRows(chunk);
    AddChunkedRows(chunk);
    AddTravel(2);
    if (tp_ > 1) meter_.Add((1 + tp_) * rows * kLogitStatistics * compute_.loss_bytes());
  }

  const ModelShape& shape_;
  const RankLayout& layout_;
  const MicroBatchTokens& tokens_;
  const ComputeShape& compute_;
  RecomputePlan recompute_;
  int tp_;
  int64_t mine_;    // T: tokens that this rank's core attention sees
  int64_t stream_;  // S: of them, those whose stream it holds
  int64_t chunk_;   // rows of the largest chunk
  int64_t width_;
  MemoryMeter meter_;
};

}  // namespace

PassMemory PassMemoryOf(const ModelShape& shape, int chunk, const RankLayout& layout,
                        const MicroBatchTokens& tokens, const ComputeShape& compute,
                        RecomputePlan recompute) {
  if (tokens.all == 0) return PassMemory();
  return PassReplay(shape, layout, tokens, compute, recompute).Run(chunk);
}

}  // namespace evenkeel
