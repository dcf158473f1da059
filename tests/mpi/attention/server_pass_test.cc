// Disaggregated attention over random plans beside attention of whole documents on one rank, and
// what must not change a bit: whether messages overlap, and which server computes what.
#include "attention/server_pass.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "attention/attention_task.h"
#include "attention/softmax_attention.h"
#include "runtime/comm/mpi_runtime.h"
#include "tests/support/pool_draw.h"
#include "tests/unit/attention/softmax_reference.h"

namespace evenkeel {
namespace {

using testing_support::PoolDraw;
using testing_support::PoolRandom;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kScale = 0.4;

AttentionShape ShapeOf(const AttentionHeads& heads, int64_t rows) {
  return {rows, rows, heads.num_heads, heads.num_kv_heads, heads.key_size, heads.value_size};
}

// The tensors of one rank or of one batch by name.
template <typename Data, typename Body>
void ForEachInput(Data& data, const Body& body) {
  body(data.q), body(data.k), body(data.v), body(data.dout);
}
template <typename Data, typename Body>
void ForEachResult(Data& data, const Body& body) {
  body("out", data.out), body("lse", data.lse), body("dq", data.dq), body("dk", data.dk),
      body("dv", data.dv);
}

class ServerPass : public testing::Test {
 protected:
  ServerPass()
      : mpi_(*MpiRuntime::Create({.timeout_s = 20})),
        comm_(mpi_.world()),
        all_(comm_, "pool", log_),
        axis_(comm_.size() == 1 ? nullptr : &all_),
        threads_(1),
        arena_(*Arena::Create(int64_t{1} << 28, tracker_)),
        context_{threads_, arena_, DType::kF64} {}

  int rank() const { return comm_.rank(); }

  // Draws batches, and the numbers in them; every rank draws alike and computes all of them whole.
  void Begin(uint64_t seed) {
    random_.emplace(seed);
    PoolRandom& random = *random_;
    heads_.num_kv_heads = random(1, 2);
    heads_.num_heads = heads_.num_kv_heads * random(1, 2);
    heads_.key_size = random(1, 6);
    heads_.value_size = random(1, 6);
    heads_.scale = kScale;
    draw_ = testing_support::RandomPools(random, comm_.size(), 150);
    for (AttentionPool& pool : draw_.pools) {
      pool.bytes.q = 8 * heads_.q_width();
      pool.bytes.kv = 8 * heads_.kv_width();
    }
    whole_.clear();
    for (const PooledBatch& batch : draw_.batches) {
      whole_.emplace_back(ShapeOf(heads_, batch.cu_seqlens.back()), seed + whole_.size());
      AttentionData<double>& data = whole_.back();
      std::fill(data.dk.begin(), data.dk.end(), 0);
      std::fill(data.dv.begin(), data.dv.end(), 0);
      const std::vector<AttentionTask> tasks = TasksOfDocuments(batch.cu_seqlens);
      SoftmaxAttentionForward(context_, tasks, kScale, ViewOf(data.q, data.QShape()),
                              ViewOf(data.k, data.KShape()), ViewOf(data.v, data.VShape()),
                              ViewOf(data.out, data.OutShape()), ViewOf(data.lse, data.LseShape()));
      SoftmaxAttentionBackward(context_, tasks, kScale, ViewOf(data.q, data.QShape()),
                               ViewOf(data.k, data.KShape()), ViewOf(data.v, data.VShape()),
                               ViewOf(data.out, data.OutShape()), ViewOf(data.lse, data.LseShape()),
                               ViewOf(data.dout, data.OutShape()), ViewOf(data.dq, data.QShape()),
                               ViewOf(data.dk, data.KShape()), ViewOf(data.dv, data.VShape()));
    }
  }

  // What this rank holds of the batches, inputs and results.
  AttentionData<double> Mine() const {
    AttentionData<double> mine(ShapeOf(heads_, 0));
    for (size_t b = 0; b < draw_.batches.size(); ++b) {
      const PooledBatch& batch = draw_.batches[b];
      const auto at = std::find(batch.ranks.begin(), batch.ranks.end(), rank());
      if (at == batch.ranks.end()) continue;
      const auto layout = SequenceLayout::Make(SequenceSplit::kHalves, batch.cu_seqlens,
                                               static_cast<int>(batch.ranks.size()));
      const auto place = static_cast<int>(at - batch.ranks.begin());
      mine.shape = ShapeOf(heads_, layout.rows()[static_cast<size_t>(place)]);
      const auto take = [&](const std::vector<double>& from, std::vector<double>& to,
                            int64_t width) {
        for (const SequencePiece& piece : layout.pieces(place)) {
          const int64_t row = batch.cu_seqlens[static_cast<size_t>(piece.document)] + piece.begin;
          to.insert(to.end(), from.begin() + row * width,
                    from.begin() + (row + piece.length) * width);
        }
      };
      const AttentionData<double>& whole = whole_[b];
      const int64_t q = heads_.q_width(), out = heads_.out_width();
      const int64_t k = heads_.num_kv_heads * heads_.key_size;
      const int64_t v = heads_.num_kv_heads * heads_.value_size;
      take(whole.q, mine.q, q), take(whole.k, mine.k, k), take(whole.v, mine.v, v);
      take(whole.dout, mine.dout, out), take(whole.out, mine.out, out);
      take(whole.lse, mine.lse, heads_.num_heads);
      take(whole.dq, mine.dq, q), take(whole.dk, mine.dk, k), take(whole.dv, mine.dv, v);
    }
    return mine;
  }

  struct Outcome {
    AttentionData<double> data{AttentionShape()};
    ServerTimes times[2];
    double sent[2] = {0, 0};  // bytes, forward and backward
  };

  // A layer of a tick as models/ runs it.
  Outcome Run(const DisaggregationPlan plans[2], bool has_residents, const ServerPassMode& mode) {
    const ArenaScope scope(arena_);
    Outcome outcome;
    std::vector<ServerClock> clocks = MakeServerClocks(context_);
    outcome.data = Mine();
    AttentionData<double>& data = outcome.data;
    ForEachResult(data,
                  [](const char*, std::vector<double>& x) { std::fill(x.begin(), x.end(), kNan); });
    {  // What is not received shows.
      const ArenaScope poison(arena_);
      const TensorView all = arena_.Allocate(DType::kF64, {1 << 20}, MemoryPurpose::kWorkspace);
      std::fill_n(all.as<double>(), all.num_elements(), kNan);
    }
    ServerExchange exchanges[2];
    for (int n = 0; n < 2; ++n) {
      exchanges[n] = MakeServerExchange(draw_.pools[n], plans[n], rank(), has_residents);
      Prepare(context_, heads_.of_tasks(), /*backward=*/true, exchanges[n]);
    }
    const bool has_rows = data.shape.q_rows > 0;
    const auto view = [&](std::vector<double>& x, const Shape& shape) {
      return has_rows ? ViewOf(x, shape) : TensorView();
    };
    const TensorView q = view(data.q, data.QShape()), k = view(data.k, data.KShape()),
                     v = view(data.v, data.VShape()), out = view(data.out, data.OutShape()),
                     lse = view(data.lse, data.LseShape()), dout = view(data.dout, data.OutShape()),
                     dq = view(data.dq, data.QShape()), dk = view(data.dk, data.KShape()),
                     dv = view(data.dv, data.VShape());
    log_.TakeSentBytes();
    {
      const ArenaScope buffers(arena_);
      std::optional<ServerForward> passes[2];
      for (int n = 0; n < 2; ++n) {
        passes[n].emplace(context_, axis_, exchanges[n], heads_, mode, clocks[0]);
      }
      for (int n = 0; n < 2; ++n) passes[n]->Dispatch(q, k, v, out, lse);
      for (int n = 0; n < 2; ++n) passes[n]->Attend();
      for (int n = 0; n < 2; ++n) passes[n]->Collect();
    }
    outcome.sent[0] = log_.TakeSentBytes();
    const int64_t second = exchanges[1].num_returned();
    const int64_t all = second + exchanges[0].num_returned();
    const TensorView returned =
        arena_.Allocate(DType::kF64, {all, heads_.kv_width()}, MemoryPurpose::kWorkspace);
    std::fill_n(returned.as<double>(), returned.num_elements(), kNan);
    const TensorView parts[2] = {returned.Rows(second, all), returned.Rows(0, second)};
    std::optional<ServerBackward> passes[2];
    for (int n = 0; n < 2; ++n) {
      passes[n].emplace(context_, axis_, exchanges[n], heads_, mode, clocks[1], parts[n]);
    }
    for (const int n : {1, 0}) passes[n]->Dispatch({q, k, v, out, lse, dout, dq, dk, dv});
    for (const int n : {1, 0}) passes[n]->Attend();
    KeyGradientList sums[2];
    KeyGradientSums(exchanges[0], exchanges[1], draw_.first_rows[static_cast<size_t>(rank())],
                    sums[0], sums[1]);
    for (const int n : {1, 0}) {
      passes[n]->Collect();
      if (!has_rows) continue;
      SumKeyGradients(context_, heads_, Mirror(context_, RowSegments(sums[n].segments)),
                      Mirror(context_, Positions(sums[n].terms)), returned, dk, dv);
    }
    outcome.sent[1] = log_.TakeSentBytes();
    for (size_t phase = 0; phase < 2; ++phase) outcome.times[phase] = clocks[phase].Take();
    EXPECT_TRUE(log_.status().ok()) << log_.status();
    return outcome;
  }

  void ExpectWhole(const Outcome& outcome) {
    const AttentionData<double> expected = Mine();
    std::map<std::string, const std::vector<double>*> found;
    ForEachResult(outcome.data,
                  [&](const char* name, const std::vector<double>& x) { found[name] = &x; });
    ForEachResult(expected, [&](const char* name, const std::vector<double>& x) {
      ASSERT_EQ(found[name]->size(), x.size());
      double largest = 1;
      for (const double value : x) largest = std::max(largest, std::abs(value));
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_NEAR((*found[name])[i], x[i], 1e-12 * largest) << name << " at " << i;
      }
    });
  }

  void ExpectSameBits(const Outcome& outcome, const Outcome& expected) {
    std::map<std::string, const std::vector<double>*> found;
    ForEachResult(outcome.data,
                  [&](const char* name, const std::vector<double>& x) { found[name] = &x; });
    ForEachResult(expected.data, [&](const char* name, const std::vector<double>& x) {
      ASSERT_EQ(found[name]->size(), x.size());
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_EQ(std::memcmp(&(*found[name])[i], &x[i], sizeof(double)), 0)
            << name << " at " << i << ": " << (*found[name])[i] << ", not " << x[i];
      }
    });
  }

  MpiRuntime mpi_;
  Communicator& comm_;
  CommLog log_;
  AxisComm all_;
  AxisComm* axis_;  // null for one rank
  MemoryTracker tracker_;
  ThreadPool threads_;
  Arena arena_;
  OpContext context_;
  AttentionHeads heads_;
  std::optional<PoolRandom> random_;
  PoolDraw draw_;
  std::vector<AttentionData<double>> whole_;  // by batch
};

TEST_F(ServerPass, IsAttentionOfWholeDocuments) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Begin(seed);
    const DisaggregationPlan plans[2] = {testing_support::RandomPlan(*random_, draw_.pools[0]),
                                         testing_support::RandomPlan(*random_, draw_.pools[1])};
    for (const bool has_residents : {false, true}) {
      const Outcome outcome = Run(plans, has_residents, {});
      ExpectWhole(outcome);
      const auto me = static_cast<size_t>(rank());
      for (const ServerTimes& times : outcome.times) {
        ASSERT_EQ(times.planned, plans[0].load[me] + plans[1].load[me]);
        ASSERT_EQ(times.seconds > 0, times.planned > 0);
      }
    }
  }
}

TEST_F(ServerPass, OfThePlannersPlans) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Begin(200 + seed);
    DisaggregationPlan plans[2];
    for (int n = 0; n < 2; ++n) {
      plans[n] = PlanDisaggregation(draw_.pools[n], AttentionCost::PerPair(1),
                                    {.tolerance = 0.05, .shard_tokens = 8});
    }
    ExpectWhole(Run(plans, true, {}));
  }
}

// Every message is waited for where it is sent: nothing else may change.
TEST_F(ServerPass, OverlapChangesNoBit) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Begin(300 + seed);
    const DisaggregationPlan plans[2] = {testing_support::RandomPlan(*random_, draw_.pools[0]),
                                         testing_support::RandomPlan(*random_, draw_.pools[1])};
    const bool has_residents = random_->OneIn(2);
    const Outcome outcome = Run(plans, has_residents, {.overlaps = true});
    const Outcome waits = Run(plans, has_residents, {.overlaps = false});
    ExpectWhole(waits);
    ExpectSameBits(outcome, waits);
    ASSERT_EQ(outcome.sent[0], waits.sent[0]);
    ASSERT_EQ(outcome.sent[1], waits.sent[1]);
  }
}

// The same tasks on other servers: what a rank holds of the results is the same, bit by bit, also
// where a document that stayed where it was now travels.
TEST_F(ServerPass, WhoServesChangesNoBit) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Begin(400 + seed);
    const DisaggregationPlan plans[2] = {testing_support::RandomPlan(*random_, draw_.pools[0]),
                                         testing_support::RandomPlan(*random_, draw_.pools[1])};
    const Outcome outcome = Run(plans, true, {});
    for (int round = 0; round < 3; ++round) {
      const std::vector<int> servers[2] = {random_->Permutation(comm_.size()),
                                           random_->Permutation(comm_.size())};
      const DisaggregationPlan others[2] = {
          testing_support::WithServers(draw_.pools[0], plans[0], servers[0]),
          testing_support::WithServers(draw_.pools[1], plans[1], servers[1])};
      ExpectSameBits(Run(others, round != 1, {}), outcome);
    }
  }
}

// Forward there what the plan counted, back H D numbers and H statistics a query that came.
// Backward: see server_pass.h.
TEST_F(ServerPass, SendsWhatThePlanCounted) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Begin(500 + seed);
    DisaggregationPlan plans[2];
    double forward = 0, backward = 0;
    const double wide = 8, out = 8.0 * static_cast<double>(heads_.out_width());
    const double q = 8.0 * static_cast<double>(heads_.q_width());
    const double kv = 8.0 * static_cast<double>(heads_.kv_width());
    const double lse = wide * static_cast<double>(heads_.num_heads);
    for (int n = 0; n < 2; ++n) {
      plans[n] = PlanDisaggregation(draw_.pools[n], AttentionCost::PerPair(1),
                                    {.tolerance = 0.05, .shard_tokens = 8});
      forward += static_cast<double>(plans[n].send_bytes[static_cast<size_t>(rank())]);
      for (const AttentionLink& link : LinksOf(draw_.pools[n], plans[n].tasks)) {
        const auto queries = static_cast<double>(link.q_tokens);
        const auto keys = static_cast<double>(link.kv_tokens);
        if (link.from == rank()) backward += queries * (q + 2 * out + lse) + keys * kv;
        if (link.to == rank()) {
          forward += queries * (out + lse);
          backward += queries * q + keys * kv;
        }
      }
    }
    const Outcome outcome = Run(plans, true, {});
    ASSERT_EQ(outcome.sent[0], forward);
    ASSERT_EQ(outcome.sent[1], backward);
  }
}

// One number a message: as many messages, and whoever waits is answered.
TEST_F(ServerPass, SignalsComplete) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Begin(600 + seed);
    const DisaggregationPlan plans[2] = {testing_support::RandomPlan(*random_, draw_.pools[0]),
                                         testing_support::RandomPlan(*random_, draw_.pools[1])};
    double forward = 0, backward = 0;  // messages
    for (int n = 0; n < 2; ++n) {
      const ServerExchange exchange = MakeServerExchange(draw_.pools[n], plans[n], rank(), true);
      const auto there = [](const RowRoute& route) {
        return static_cast<double>(route.sends.size());
      };
      const auto back = [](const RowRoute& route) {
        return static_cast<double>(route.receives.size());
      };
      forward += there(exchange.queries) + there(exchange.keys) + 2 * back(exchange.queries);
      backward += 2 * there(exchange.queries) + there(exchange.keys) + back(exchange.queries) +
                  back(exchange.keys);
    }
    for (const bool overlaps : {true, false}) {
      const Outcome outcome = Run(plans, true, {.overlaps = overlaps, .signals = true});
      ASSERT_EQ(outcome.sent[0], sizeof(double) * forward);
      ASSERT_EQ(outcome.sent[1], sizeof(double) * backward);
    }
    ExpectWhole(Run(plans, true, {}));  // nothing is left under way
  }
}

}  // namespace
}  // namespace evenkeel
