// Random layouts, models and batches for the property tests, drawn alike on every rank.
#pragma once

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "launch/parallel_config.h"
#include "models/block.h"
#include "runtime/base/philox.h"
#include "tests/support/tiny_models.h"

namespace evenkeel::testing_support {

class Draw {
 public:
  explicit Draw(uint64_t seed) : random_(seed, 11) {}

  int64_t Int(int64_t low, int64_t high) {
    return low +
           static_cast<int64_t>(random_.Bits(count_++) % static_cast<uint64_t>(high - low + 1));
  }
  template <typename T>
  const T& One(const std::vector<T>& from) {
    return from[static_cast<size_t>(Int(0, static_cast<int64_t>(from.size()) - 1))];
  }

 private:
  Philox random_;
  uint64_t count_ = 0;
};

struct LayoutCase {
  ModelConfig model;
  std::string model_name;
  ParallelConfig parallel;
  Recompute recompute = Recompute::kNone;
  // Documents of each micro-batch of each replica, [dp][micro-batch].
  std::vector<std::vector<std::vector<int64_t>>> lengths;
  // Of the attention servers of a pool, where it is disaggregated: 0 serves nothing.
  std::vector<double> pool_speed;

  std::string ToString() const;
  // Tokens of the longest micro-batch.
  int64_t most_tokens() const;
};

// Models with enough heads, layers and vocabulary for eight ranks on any axis.
inline std::vector<NamedModel> LayoutModels() {
  std::vector<NamedModel> models = AllTinyModels();
  for (NamedModel& named : models) {
    ModelConfig& config = named.config;
    config.num_layers = 8;
    config.num_heads = 8;
    config.hidden_size = 24;
    config.intermediate_size = 22;
    config.head_dim = 4;
    if (config.num_kv_heads > 0) config.num_kv_heads = 4;
    config.lrpe_layers = {0, 5};
    config.init_std = 0.1;
  }
  models.push_back(models.front());
  models.back().name = "one key/value head";
  models.back().config.num_kv_heads = 1;
  return models;
}

// Makes a micro-batch so long that several chunks of tokens (models/block_chunks.h) are under way
// at once: a document longer than the share of any two ranks, and others. All layers would take
// long, so there are as many as the stages need, and two for each kind of layer.
inline void Lengthen(Draw& draw, LayoutCase& layout) {
  std::vector<std::vector<int64_t>>& replica = layout.lengths[static_cast<size_t>(
      draw.Int(0, static_cast<int64_t>(layout.lengths.size()) - 1))];
  std::vector<int64_t>& documents =
      replica[static_cast<size_t>(draw.Int(0, static_cast<int64_t>(replica.size()) - 1))];
  documents = {draw.Int(1, 60), draw.Int(500, 900)};
  const int64_t tokens = draw.Int(1100, 1700);
  for (int64_t sum = documents[0] + documents[1]; sum < tokens; sum += documents.back()) {
    documents.push_back(std::min(tokens - sum, draw.Int(1, 300)));
  }
  const int64_t stages = layout.parallel.mesh.pp * layout.parallel.virtual_stages;
  layout.model.num_layers =
      std::max(stages, 2 * static_cast<int64_t>(layout.model.layer_pattern.size()));
  layout.parallel.layers_per_stage.clear();
}

// Tokens cannot be exchanged for heads where these do not divide.
inline void KeepExchangePossible(LayoutCase& layout) {
  ParallelConfig& parallel = layout.parallel;
  const int64_t kv = std::max<int64_t>(1, layout.model.kv_heads() / parallel.mesh.tp);
  const int64_t heads = layout.model.num_heads / parallel.mesh.tp;
  const int cp = parallel.mesh.cp;
  if (heads % cp != 0 || (kv % cp != 0 && cp % kv != 0)) {
    parallel.attention = SoftmaxExchange::kRing;
  }
  // Ranks that share parameters hold equal slices.
  if (parallel.zero != ShardingStage::kNone && layout.model.intermediate_size % parallel.mesh.tp) {
    layout.model.intermediate_size = 24;
  }
}

// A layout over `ranks` ranks.
inline LayoutCase DrawLayout(uint64_t seed, int ranks) {
  Draw draw(seed);
  LayoutCase layout;
  const std::vector<NamedModel> models = LayoutModels();
  const NamedModel& named = draw.One(models);
  layout.model = named.config;
  layout.model_name = named.name;
  // A random factorization: prime factors to random axes.
  ParallelConfig& parallel = layout.parallel;
  parallel.mesh = MeshShape();
  int left = ranks;
  for (int factor = 2; left > 1;) {
    if (left % factor != 0) {
      ++factor;
      continue;
    }
    left /= factor;
    int* const axes[] = {&parallel.mesh.pp, &parallel.mesh.dp, &parallel.mesh.cp,
                         &parallel.mesh.tp};
    // Heads divide by powers of two alone.
    int* axis = axes[draw.Int(0, factor == 2 ? 3 : 2)];
    *axis *= factor;
  }
  if (parallel.mesh.pp > 1) {
    const auto most = static_cast<int>(layout.model.num_layers / parallel.mesh.pp);
    parallel.virtual_stages = static_cast<int>(draw.Int(1, std::min(3, most)));
    if (draw.Int(0, 2) == 0) {
      const int stages = parallel.mesh.pp * parallel.virtual_stages;
      std::vector<int64_t> layers(static_cast<size_t>(stages), 1);
      for (int64_t i = stages; i < layout.model.num_layers; ++i) {
        ++layers[static_cast<size_t>(draw.Int(0, stages - 1))];
      }
      parallel.layers_per_stage = layers;
    }
  }
  parallel.zero = draw.One<ShardingStage>({ShardingStage::kNone, ShardingStage::kOptimizer,
                                           ShardingStage::kGradients, ShardingStage::kParameters});
  parallel.attention = draw.One<SoftmaxExchange>(
      {SoftmaxExchange::kGather, SoftmaxExchange::kRing, SoftmaxExchange::kUlysses});
  parallel.linear_attention =
      draw.One<StateExchange>({StateExchange::kGather, StateExchange::kScan});
  parallel.split =
      draw.One<SplitPolicy>({SplitPolicy::kAuto, SplitPolicy::kContiguous, SplitPolicy::kZigzag});
  KeepExchangePossible(layout);
  layout.recompute = draw.One<Recompute>(
      {Recompute::kNone, Recompute::kMlp, Recompute::kAllButAttention, Recompute::kLayer});
  // Micro-batches: equally many on every replica, some of them empty.
  const int64_t micro_batches = draw.Int(1, parallel.mesh.pp > 1 ? 5 : 3);
  for (int replica = 0; replica < parallel.mesh.dp; ++replica) {
    layout.lengths.emplace_back();
    for (int64_t m = 0; m < micro_batches; ++m) {
      std::vector<int64_t> documents;
      const int64_t kind = draw.Int(0, 8);
      if (kind == 1) {
        documents.push_back(draw.Int(1, 3));  // fewer tokens than ranks, where there are many
      } else if (kind > 1) {
        const int64_t n = draw.Int(1, 6);
        for (int64_t d = 0; d < n; ++d) {
          documents.push_back(draw.Int(0, 3) == 0 ? draw.Int(30, 70) : draw.Int(1, 9));
        }
      }
      layout.lengths.back().push_back(documents);
    }
  }
  // Chunks travel between tensor-parallel ranks.
  if (draw.Int(0, parallel.mesh.tp > 1 ? 4 : 15) == 0) Lengthen(draw, layout);
  return layout;
}

// A layout whose softmax attention is disaggregated, with servers of random speeds.
inline LayoutCase DrawPooledLayout(uint64_t seed, int ranks) {
  LayoutCase layout = DrawLayout(seed, ranks);
  while (!layout.model.has_kind(LayerKind::kSoftmax)) {
    seed += 1000000;
    layout = DrawLayout(seed, ranks);
  }
  Draw draw(seed + 3);
  ParallelConfig& parallel = layout.parallel;
  parallel.attention = SoftmaxExchange::kDisaggregated;
  parallel.split = SplitPolicy::kAuto;
  parallel.attention_shard = draw.One<int64_t>({1, 2, 8, 128});
  parallel.ping_pong = draw.One<PingPong>({PingPong::kOn, PingPong::kOff, PingPong::kSerial});
  parallel.attention_tolerance = draw.One<double>({0.01, 0.1, 1.0});
  for (int r = 0; r < ranks; ++r) {
    layout.pool_speed.push_back(draw.One<double>({0, 0.5, 1, 1, 1, 3}));
  }
  layout.pool_speed[static_cast<size_t>(draw.Int(0, ranks / parallel.mesh.tp - 1))] = 1;
  return layout;
}

// A pooled layout beside dedicated servers, `ranks` > 1 all together.
inline LayoutCase DrawServedLayout(uint64_t seed, int ranks) {
  Draw draw(seed);
  LayoutCase layout;
  int tp = 0;
  int64_t servers = 0;
  while (tp == 0 || servers % tp != 0) {
    servers = draw.Int(1, ranks - 1);
    layout = DrawPooledLayout(static_cast<uint64_t>(draw.Int(0, 1 << 20)),
                              ranks - static_cast<int>(servers));
    tp = layout.parallel.mesh.tp;
  }
  layout.pool_speed.clear();
  layout.parallel.attention_servers = static_cast<int>(servers) / tp;
  return layout;
}

// The first layout from `seed` on with tensor parallelism, if `ranks` can have it, and a long
// micro-batch.
inline LayoutCase DrawLongLayout(uint64_t seed, int ranks, Recompute recompute) {
  LayoutCase layout = DrawLayout(seed, ranks);
  while (ranks % 2 == 0 && layout.parallel.mesh.tp == 1) layout = DrawLayout(++seed, ranks);
  Draw draw(seed + 1);
  Lengthen(draw, layout);
  layout.recompute = recompute;
  return layout;
}

// Every model with all ranks on the cp axis, under each exchange, and, where heads divide, on the
// tp axis; documents drawn from `seed` on.
inline std::vector<LayoutCase> EveryModelOnOneAxis(uint64_t seed, int ranks) {
  std::vector<LayoutCase> cases;
  const auto add = [&](const NamedModel& named, MeshShape mesh, SoftmaxExchange attention,
                       StateExchange states) {
    LayoutCase layout = DrawLayout(seed++, 1);
    layout.model = named.config;
    layout.model_name = named.name;
    layout.parallel.mesh = mesh;
    layout.parallel.attention = attention;
    layout.parallel.linear_attention = states;
    layout.lengths[0].push_back({17, 3, 40, 1});  // the others may be empty
    KeepExchangePossible(layout);
    cases.push_back(layout);
  };
  for (const NamedModel& named : LayoutModels()) {
    const MeshShape cp{1, 1, ranks, 1}, tp{1, 1, 1, ranks};
    add(named, cp, SoftmaxExchange::kGather, StateExchange::kGather);
    add(named, cp, SoftmaxExchange::kRing, StateExchange::kScan);
    add(named, cp, SoftmaxExchange::kUlysses, StateExchange::kGather);
    if (8 % ranks == 0) add(named, tp, SoftmaxExchange::kGather, StateExchange::kGather);
  }
  return cases;
}

inline int64_t LayoutCase::most_tokens() const {
  int64_t most = 0;
  for (const auto& replica : lengths) {
    for (const auto& documents : replica) {
      most = std::max(most, std::accumulate(documents.begin(), documents.end(), int64_t{0}));
    }
  }
  return most;
}

inline std::string LayoutCase::ToString() const {
  const MeshShape& mesh = parallel.mesh;
  std::string text =
      absl::StrCat(model_name, ": pp ", mesh.pp, " x ", parallel.virtual_stages, ", dp ", mesh.dp,
                   ", cp ", mesh.cp, ", tp ", mesh.tp, ", zero ", static_cast<int>(parallel.zero),
                   ", attention ", static_cast<int>(parallel.attention), ", linear ",
                   static_cast<int>(parallel.linear_attention), ", split ",
                   static_cast<int>(parallel.split), ", recompute ", static_cast<int>(recompute),
                   ", layers ", absl::StrJoin(parallel.layers_per_stage, " "), ", documents");
  if (parallel.attention == SoftmaxExchange::kDisaggregated) {
    absl::StrAppend(&text, " (shards of ", parallel.attention_shard, ", speeds ",
                    absl::StrJoin(pool_speed, " "), ")");
  }
  for (const auto& replica : lengths) {
    for (const auto& documents : replica) {
      absl::StrAppend(&text, " [", absl::StrJoin(documents, " "), "]");
    }
  }
  return text;
}

}  // namespace evenkeel::testing_support
