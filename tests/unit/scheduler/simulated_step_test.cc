#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "scheduler/baseline_step.h"
#include "scheduler/disaggregated_step.h"
#include "scheduler/document_placement.h"

namespace evenkeel {
namespace {

using ::testing::ElementsAre;

using Batches = std::vector<std::vector<int64_t>>;

// Micro-batches cut over replicas, documents as prefix sums: [replica][micro_batch].
std::vector<Batches> Deal(const Batches& micro_batches, int replicas = 1) {
  std::vector<Batches> dealt(static_cast<size_t>(replicas));
  for (const auto& documents : micro_batches) {
    const Batches parts = CutEvenly(documents, replicas);
    for (size_t r = 0; r < parts.size(); ++r) {
      std::vector<int64_t> cu_seqlens = {0};
      for (int64_t length : parts[r]) cu_seqlens.push_back(cu_seqlens.back() + length);
      dealt[r].push_back(std::move(cu_seqlens));
    }
  }
  return dealt;
}

constexpr double kFast = 1e18;     // bytes per second
constexpr double kHardly = 1e-15;  // seconds a pair

ClusterShape Cluster(double bytes_per_second, double latency = 0) {
  ClusterShape cluster;
  cluster.gpus_per_node = 1;
  cluster.network = cluster.nvlink = {bytes_per_second, latency};
  return cluster;
}

// `layers` in each stage that take `pre` and `post` seconds a token forward, twice that backward,
// and as long for a pair in both.
StepCosts Costs(int stages, int layers, double pre, double post, double pair) {
  StepCosts costs;
  costs.stages.resize(static_cast<size_t>(stages));
  for (StageCost& stage : costs.stages) {
    stage.layers.resize(static_cast<size_t>(layers), {{pre, 2 * pre}, {post, 2 * post}, {}});
  }
  costs.token_bytes = {.q = 1, .kv = 2, .out = 1, .lse = 0, .kv_gradient = 4};
  costs.forward.cost = costs.backward.cost = AttentionCost::PerPair(pair);
  return costs;
}

// One owner, one dedicated server, one layer, a document of 256 tokens: 128 a nano-batch. A second
// of pre, two of post, a second of attention for the pairs of the first nano-batch.
class OwnerAndServer : public ::testing::Test {
 protected:
  OwnerAndServer() : costs_(Costs(1, 1, 1. / 128, 2. / 128, 1. / 8256)) {
    setup_.servers = 1;
    setup_.owners_serve = false;
  }
  SimulatedStep Run(double bytes_per_second, double latency = 0) const {
    return SimulateDisaggregated(setup_, Cluster(bytes_per_second, latency), costs_, Deal({{256}}),
                                 true);
  }
  static constexpr double kLater = 24640. / 8256;  // attention of the second nano-batch

  DisaggregatedSetup setup_;
  StepCosts costs_;
};

// By hand; 384 bytes a second. Forward dispatches are 128 (1 + 2) and 128 + 256 x 2 bytes, returns
// 128; backward 128 x 3 + 256 x 2, 128 x 3 + 128 x 2, and 128 + 256 x 4, 128 + 128 x 4.
TEST_F(OwnerAndServer, PingPong) {
  const double pre0 = 1, pre1 = 2;
  const double out0 = pre0 + 1, out1 = out0 + 640. / 384;
  const double attend0 = out0 + 1, attend1 = out1 + kLater;
  const double back0 = std::max(attend0, out1) + 128. / 384, back1 = attend1 + 128. / 384;
  const double post0 = back0 + 2, post1 = std::max(post0, back1) + 2;
  EXPECT_LT(attend0, out1);  // the return waits behind the second dispatch
  EXPECT_LT(pre1, out1);
  // Backward, the second nano-batch first.
  const double b_post1 = post1 + 4, b_post0 = b_post1 + 4;
  const double b_out1 = b_post1 + 896. / 384, b_out0 = b_post0 + 640. / 384;
  const double b_attend1 = b_out1 + kLater, b_attend0 = std::max(b_attend1, b_out0) + 1;
  const double b_back1 = std::max(b_attend1, b_out0) + 1152. / 384;
  const double b_back0 = std::max(b_back1, b_attend0) + 640. / 384;
  const double b_pre1 = b_back1 + 2, b_pre0 = std::max(b_pre1, b_back0) + 2;
  const SimulatedStep step = Run(384);
  EXPECT_NEAR(step.seconds, b_pre0, 1e-9);
  EXPECT_NEAR(b_pre0, 25.6511628, 1e-6);
  EXPECT_NEAR(step.busy[0].linear, 6 + 12, 1e-9);
  EXPECT_NEAR(step.busy[1].attention, 2 * (1 + kLater), 1e-9);
  EXPECT_EQ(step.busy[0].attention, 0);
  EXPECT_EQ(step.plans.max_send, 640);
}

// Here nothing can be done beside anything else, so the step is the sum of all there is.
TEST_F(OwnerAndServer, OneStreamIsTheSum) {
  setup_.mode = MessageMode::kOneStream;
  const double compute = 18 + 2 * (1 + kLater);
  const double bytes = 384 + 640 + 2 * 128 + 896 + 640 + 1152 + 640;
  EXPECT_NEAR(Run(384).seconds, compute + bytes / 384, 1e-9);
  EXPECT_NEAR(Run(384, 0.5).seconds, compute + bytes / 384 + 8 * 0.5, 1e-9);
}

TEST_F(OwnerAndServer, SignalIsNoCommunication) {
  const double free = Run(kFast).seconds;
  setup_.mode = MessageMode::kSignal;
  EXPECT_NEAR(Run(1e12).seconds, free, 1e-9);
  // Latency stays, and a byte.
  EXPECT_GT(Run(1e12, 0.5).seconds, free + 1);
  setup_.mode = MessageMode::kPingPong;
  EXPECT_GT(Run(384).seconds, free + 1);
}

TEST_F(OwnerAndServer, PackingTakesTheComputeStream) {
  for (int layers : {1, 3}) {
    costs_ = Costs(1, layers, 1. / 128, 2. / 128, 1. / 8256);
    costs_.copy_seconds_per_byte = 1. / 128;
    const SimulatedStep step = Run(kFast);
    // The owner packs both dispatches and unpacks both returns, in both directions.
    EXPECT_NEAR(step.busy[0].copy, layers * (384 + 640 + 2 * 128 + 896 + 640 + 1152 + 640) / 128.,
                1e-9);
    // The server receives and sends in place.
    EXPECT_EQ(step.busy[1].copy, 0);
  }
}

TEST(DisaggregatedStep, OneRankIsTheSumOfItsWork) {
  StepCosts costs = Costs(1, 3, 1e-3, 2e-3, 1e-5);
  costs.stages[0].tail = {3e-3, 5e-3};
  costs.piece_overhead = 0.5;
  costs.step_seconds = 7;
  DisaggregatedSetup setup;
  const SimulatedStep step =
      SimulateDisaggregated(setup, Cluster(1), costs, Deal({{1000, 24}, {1024}}));
  const double pairs = 1000 * 1001 / 2 + 24 * 25 / 2 + 1024 * 1025 / 2;
  const double linear = 2048 * (3 * 9e-3 + 8e-3);
  // Forward and backward of 2 micro-batches: in each of 3 layers a piece before and one of
  // attention, and one at the end, of both nano-batches, and the tail.
  EXPECT_NEAR(step.seconds, linear + 2 * 3 * pairs * 1e-5 + 2 * 2 * (2 * (3 + 3 + 1) + 1) * 0.5 + 7,
              1e-9);
  EXPECT_NEAR(IdleShare(step), 7 / step.seconds, 1e-9);
}

// What a rank computes, one after the other: linear pieces and attention of two layers, forward and
// backward.
TEST(DisaggregatedStep, OrdersOfPieces) {
  DisaggregatedSetup setup;
  const auto pieces = [&setup](PieceOrder order) {
    setup.order = order;
    const SimulatedStep step =
        SimulateDisaggregated(setup, Cluster(1), Costs(1, 2, 1, 1, 1), Deal({{256}}), true);
    std::string text;
    for (const SimSpan& span : step.spans) {
      text += span.work == SimWork::kLinear ? 'p' : 'a';
    }
    return text;
  };
  EXPECT_EQ(pieces(PieceOrder::kPingPong),
            "ppaappaapp"
            "ppaappaapp");
  EXPECT_EQ(pieces(PieceOrder::kStaggered),
            "ppapapapap"
            "ppapapapap");
  EXPECT_EQ(pieces(PieceOrder::kStaggeredForward),
            "ppapapapap"
            "ppaappaapp");
}

// Layers of other attention are computed whole, when all nano-batches are done with the layer
// before: 'o', as long as nothing else is.
TEST(DisaggregatedStep, OtherLayersAreComputedWhole) {
  DisaggregatedSetup setup;
  StepCosts costs = Costs(1, 3, 1, 1, 1);
  costs.stages[0].layers[2].others = {100, 200};
  const auto pieces = [&](const StepCosts& of) {
    const SimulatedStep step = SimulateDisaggregated(setup, Cluster(1), of, Deal({{256}}), true);
    std::string text;
    for (const SimSpan& span : step.spans) {
      const bool is_other = span.end - span.start >= 256 * 99;
      text += span.work == SimWork::kAttention ? 'a' : is_other ? 'o' : 'p';
    }
    return text;
  };
  // Attention of a pair takes too long to be told from it.
  costs.forward.cost = costs.backward.cost = AttentionCost::PerPair(1e-3);
  EXPECT_EQ(pieces(costs),
            "ppaappaappoppaapp"
            "ppaappoppaappaapp");
  costs.stages[0].layers[0].others = costs.stages[0].tail = {100, 200};
  EXPECT_EQ(pieces(costs),
            "oppaappaappoppaappo"
            "oppaappoppaappaappo");
  // Embedding, head and the gradient of the embedding.
  costs.stages[0].layers[0].others = costs.stages[0].layers[2].others = costs.stages[0].tail = {};
  costs.stages[0].embedding = costs.stages[0].head = {100, 100};
  EXPECT_EQ(pieces(costs),
            "oppaappaappaapp"
            "oppaappaappaappo");
}

// Attention hides what goes out in staggered order, and post and pre alone do in ping-pong order.
// What comes back is hidden in ping-pong order only.
TEST(DisaggregatedStep, WhatOrdersHide) {
  DisaggregatedSetup setup;
  setup.replicas = 2;
  setup.planning.tolerance = 0.01;
  // One long document, and many short ones on the other rank: half of it moves.
  std::vector<int64_t> documents(64, 64);
  documents.insert(documents.begin(), 4096);
  StepCosts costs = Costs(1, 8, 1e-6, 1e-6, 1e-6);
  const auto seconds = [&](PieceOrder order, AttentionTokenBytes bytes) {
    costs.token_bytes = bytes;
    setup.order = order;
    return SimulateDisaggregated(setup, Cluster(3e3), costs, Deal({documents}, 2)).seconds;
  };
  const AttentionTokenBytes out = {.q = 0, .kv = 2, .out = 0, .lse = 0, .kv_gradient = 0};
  const AttentionTokenBytes back = {.q = 0, .kv = 0, .out = 0, .lse = 2, .kv_gradient = 2};
  EXPECT_LT(seconds(PieceOrder::kStaggered, out), 0.95 * seconds(PieceOrder::kPingPong, out));
  EXPECT_LT(seconds(PieceOrder::kPingPong, back), 0.95 * seconds(PieceOrder::kStaggered, back));
}

// The bubble's formula, with one nano-batch (of one token) or two: a stage begins when the one
// before is done with both.
TEST(DisaggregatedStep, PipelineWithoutAttention) {
  for (int pp : {1, 2, 4}) {
    for (int64_t count : {1, 3, 8}) {
      DisaggregatedSetup setup;
      setup.pp = pp;
      const auto ticks = static_cast<double>(count + pp - 1);
      // 6 seconds forward, 12 backward.
      const SimulatedStep one =
          SimulateDisaggregated(setup, Cluster(kFast), Costs(pp, 2, 1, 2, kHardly),
                                Deal(Batches(static_cast<size_t>(count), {1})));
      EXPECT_NEAR(one.seconds, ticks * 18, 1e-9);
      EXPECT_NEAR(IdleShare(one), (pp - 1) / ticks, 1e-9);
      const SimulatedStep two =
          SimulateDisaggregated(setup, Cluster(kFast), Costs(pp, 2, 1. / 64, 2. / 64, kHardly),
                                Deal(Batches(static_cast<size_t>(count), {64})));
      EXPECT_NEAR(two.seconds, ticks * 18, 1e-9);
    }
  }
}

// One pipeline's first ticks have one stage at work: its attention runs on all.
TEST(DisaggregatedStep, StagesWithoutAMicroBatchServe) {
  DisaggregatedSetup setup;
  setup.pp = 4;
  setup.planning.tolerance = 0.01;
  const StepCosts costs = Costs(4, 1, 1e-9, 1e-9, 1e-6);
  const std::vector<Batches> micro_batches = Deal({{1 << 16}});
  const double pooled = SimulateDisaggregated(setup, Cluster(kFast), costs, micro_batches).seconds;
  setup.balance = false;
  const double alone = SimulateDisaggregated(setup, Cluster(kFast), costs, micro_batches).seconds;
  EXPECT_NEAR(alone / pooled, 4, 0.1);
}

TEST(DisaggregatedStep, RandomStepsKeepTheirBounds) {
  std::mt19937 random(5);
  const auto draw = [&random](int n) {
    return static_cast<int>(random() % static_cast<unsigned>(n));
  };
  for (int trial = 0; trial < 60; ++trial) {
    DisaggregatedSetup setup;
    setup.pp = 1 << draw(3);
    setup.replicas = 1 + draw(3);
    setup.ranks = 1 + draw(3);
    setup.servers = draw(3);
    setup.owners_serve = setup.servers == 0 || draw(2) == 0;
    setup.order = static_cast<PieceOrder>(draw(3));
    if (draw(3) == 0) setup.split = SequenceSplit::kContiguous;
    Batches lengths(static_cast<size_t>(1 + draw(5)));
    for (auto& documents : lengths) {
      for (int i = 0; i < 8; ++i) documents.push_back(1 + draw(i == 0 ? 20000 : 2000));
    }
    const std::vector<Batches> micro_batches = Deal(lengths, setup.replicas);
    double pairs = 0, tokens = 0;
    for (const Batches& replica : micro_batches) {
      for (const auto& cu_seqlens : replica) {
        tokens += static_cast<double>(cu_seqlens.back());
        for (size_t d = 1; d < cu_seqlens.size(); ++d) {
          const int64_t length = cu_seqlens[d] - cu_seqlens[d - 1];
          pairs += CausalPairs(length, length);
        }
      }
    }
    const int layers = 1 + draw(3);
    const int stages = setup.pp > 1 ? setup.pp * (1 + draw(3)) : 1;
    StepCosts costs = Costs(stages, layers, 1e-3, 2e-3, 1e-6);
    costs.stage_bytes = 2;
    const ClusterShape cluster = Cluster(1e4 * (1 + draw(20)), 0.01 * draw(3));
    const SimulatedStep step = SimulateDisaggregated(setup, cluster, costs, micro_batches, true);

    // All work is done.
    double linear = 0, attention = 0, most = 0, seconds_of_ranks = 0;
    for (const SimBusy& busy : step.busy) {
      linear += busy.linear;
      attention += busy.attention;
      most = std::max({most, busy.compute(), busy.message});
      seconds_of_ranks += busy.compute();
    }
    EXPECT_NEAR(linear, tokens * stages * layers * 9e-3, 1e-6 * linear);
    EXPECT_NEAR(attention, 2 * pairs * stages * layers * 1e-6, 1e-6 * attention);
    EXPECT_GE(step.seconds, most * (1 - 1e-12));
    EXPECT_GE(step.seconds, seconds_of_ranks / setup.num_ranks() * (1 - 1e-12));

    // No port sends or receives, and no stream computes, two things at once.
    std::vector<std::vector<std::pair<double, double>>> ports(step.busy.size() * 3);
    std::vector<double> port_seconds(ports.size());
    for (const SimSpan& span : step.spans) {
      EXPECT_GE(span.start, span.ready);
      EXPECT_LE(span.end, step.seconds + 1e-9);
      const size_t port =
          static_cast<size_t>(span.rank) * 3 + (span.is_communication ? (span.is_send ? 1 : 2) : 0);
      ports[port].emplace_back(span.start, span.end);
      port_seconds[port] += span.end - span.start;
    }
    for (auto& port : ports) {
      std::sort(port.begin(), port.end());
      for (size_t i = 1; i < port.size(); ++i) EXPECT_GE(port[i].first, port[i - 1].second - 1e-9);
    }
    for (double seconds : port_seconds) EXPECT_GE(step.seconds, seconds - 1e-9);

    // More waiting never helps, and free messages never hurt.
    DisaggregatedSetup other = setup;
    other.mode = MessageMode::kOneStream;
    EXPECT_LE(step.seconds,
              SimulateDisaggregated(other, cluster, costs, micro_batches).seconds + 1e-9);
    other.mode = MessageMode::kSignal;
    EXPECT_GE(step.seconds,
              SimulateDisaggregated(other, cluster, costs, micro_batches).seconds - 1e-9);
  }
}

// Two replicas of two stages: 1F1B with equal micro-batches has the bubble's formula.
TEST(BaselineStep, PipelineFormula) {
  BaselineSetup setup;
  setup.pp = 2;
  setup.dp = 2;
  setup.micro_batches = 3;
  const StepCosts costs = Costs(2, 1, 1. / 64, 2. / 64, 1. / 2080);
  const SimulatedStep step =
      SimulateBaseline(setup, Cluster(kFast), costs, std::vector<int64_t>(6, 64));
  // 3 of linear work and 1 of attention forward, 6 and 1 backward.
  EXPECT_NEAR(step.seconds, (3 + 1) * 11, 1e-9);
  EXPECT_NEAR(IdleShare(step), 0.25, 1e-9);
  EXPECT_EQ(step.busy.size(), 4);
}

TEST(BaselineStep, GathersAreExposedOrHidden) {
  BaselineSetup setup;
  setup.cp = 4;
  const StepCosts costs = Costs(1, 1, 1. / 64, 2. / 64, 1e-4);
  const std::vector<int64_t> documents = {512};
  const double free = SimulateBaseline(setup, Cluster(kFast), costs, documents).seconds;
  EXPECT_EQ(SimulateBaseline(setup, Cluster(kFast), costs, documents).busy.size(), 4);
  // Keys and values of all tokens but the rank's own, forward, and their gradients backward; two
  // latencies to reach four ranks.
  const double gather = 512 * 2 * 0.75 / 64;
  EXPECT_NEAR(SimulateBaseline(setup, Cluster(64, 0.5), costs, documents).seconds,
              free + 2 * (gather + 1), 1e-9);
  setup.gathers_again = true;
  EXPECT_NEAR(SimulateBaseline(setup, Cluster(64, 0.5), costs, documents).seconds,
              free + 3 * (gather + 1), 1e-9);
  setup.gathers_again = false;
  // 64 queries at the beginning and at the end.
  const double attention = (64 * 65 / 2 + 64 * 512 - 64 * 63 / 2) * 1e-4;
  setup.hides_gathers = true;
  EXPECT_NEAR(SimulateBaseline(setup, Cluster(64), costs, documents).seconds,
              free + 2 * (gather - attention), 1e-9);
  EXPECT_NEAR(SimulateBaseline(setup, Cluster(1e4), costs, documents).seconds, free, 1e-9);
}

TEST(BaselineStep, Packings) {
  BaselineSetup setup;
  setup.dp = 2;
  const StepCosts costs = Costs(1, 1, 1, 1, 1);
  setup.packing = BaselinePacking::kInOrder;
  EXPECT_THAT(PackMicroBatches(setup, costs, {60, 20, 20, 20}),
              ElementsAre(ElementsAre(60), ElementsAre(20, 20, 20)));
  // Three short ones cost less than the long one, but there is no room beside them.
  setup.packing = BaselinePacking::kBalanced;
  EXPECT_THAT(PackMicroBatches(setup, costs, {20, 60, 20, 20}),
              ElementsAre(ElementsAre(60), ElementsAre(20, 20, 20)));
  setup.token_slack = 1.5;
  EXPECT_THAT(PackMicroBatches(setup, costs, {30, 40, 30, 30, 30}),
              ElementsAre(ElementsAre(30, 30, 30), ElementsAre(40, 30)));
}

}  // namespace
}  // namespace evenkeel
