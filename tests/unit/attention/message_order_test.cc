// In which order a server pass lists its messages: by the rounds of the plan, so that ranks which
// carry out their lists in order never ask for one another's port at once.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "attention/server_pass.h"
#include "tests/support/pool_draw.h"

namespace evenkeel {
namespace {

using testing_support::PoolDraw;
using testing_support::PoolRandom;

struct Listed {
  std::vector<std::pair<int, int64_t>> sends, receives;  // peer, numbers
};

// Notes what is sent and received and says that it is done.
class Recorder final : public Communicator {
 public:
  Recorder(int rank, int size) : Communicator(rank, size, "recorder") {}
  std::vector<Listed> groups;

  Work SendRecvAsync(absl::Span<const SendTo> sends, absl::Span<const ReceiveFrom> receives,
                     const std::string&) override {
    Listed& listed = groups.emplace_back();
    for (const SendTo& m : sends) listed.sends.push_back({m.peer, m.data.num_elements()});
    for (const ReceiveFrom& m : receives)
      listed.receives.push_back({m.peer, m.data.num_elements()});
    return Work();
  }
  Work AllReduceAsync(TensorView, ReduceOp, const std::string&) override { return Never(); }
  Work BroadcastAsync(TensorView, int, const std::string&) override { return Never(); }
  Work AllGatherAsync(ConstTensorView, TensorView, absl::Span<const int64_t>,
                      const std::string&) override {
    return Never();
  }
  Work ReduceScatterAsync(ConstTensorView, TensorView, absl::Span<const int64_t>, ReduceOp,
                          const std::string&) override {
    return Never();
  }
  Work AllToAllAsync(ConstTensorView, absl::Span<const int64_t>, TensorView,
                     absl::Span<const int64_t>, const std::string&) override {
    return Never();
  }
  Work BarrierAsync(const std::string&) override { return Never(); }
  absl::StatusOr<std::unique_ptr<Communicator>> Split(int, int, const std::string&) override {
    return absl::UnimplementedError("a server pass has its pool");
  }
  absl::StatusOr<std::unique_ptr<Communicator>> MakeGroup(absl::Span<const int>,
                                                          const std::string&) override {
    return absl::UnimplementedError("a server pass has its pool");
  }
  void SetStep(int64_t) override {}
  [[noreturn]] void Abort(ExitCode) override { std::abort(); }

 private:
  static Work Never() {
    ADD_FAILURE() << "a server pass sends messages alone";
    return Work();
  }
};

constexpr AttentionHeads kHeads = {
    .num_heads = 2, .num_kv_heads = 1, .key_size = 4, .value_size = 4};

// The groups of one rank's passes forward and backward: two of each.
std::vector<Listed> GroupsOf(const AttentionPool& pool, const DisaggregationPlan& plan, int rank,
                             int64_t rows, bool has_residents) {
  MemoryTracker tracker;
  ThreadPool threads(1);
  auto arena = Arena::Create(int64_t{1} << 26, tracker);
  const OpContext context{threads, *arena};
  Recorder recorder(rank, pool.num_ranks);
  CommLog log;
  AxisComm axis(recorder, "pool", log);
  ServerExchange exchange = MakeServerExchange(pool, plan, rank, has_residents);
  for (const bool backward : {false, true}) {
    Prepare(context, kHeads.of_tasks(), backward, exchange);
    const auto zeros = [&](Shape shape) {
      return arena->AllocateZero(DType::kF32, shape, MemoryPurpose::kWorkspace);
    };
    const int64_t h = kHeads.num_heads, g = kHeads.num_kv_heads, d = kHeads.key_size;
    const TensorView q = zeros({rows, h, d}), k = zeros({rows, g, d}), v = zeros({rows, g, d});
    const TensorView out = zeros({rows, h, d}), lse = zeros({rows, h});
    ServerClock clock(context);
    const ServerPassMode mode;
    if (!backward) {
      ServerForward pass(context, &axis, exchange, kHeads, mode, clock);
      pass.Dispatch(q, k, v, out, lse);
      pass.Attend();
      pass.Collect();
    } else {
      const TensorView returned = zeros({exchange.num_returned(), kHeads.kv_width()});
      ServerBackward pass(context, &axis, exchange, kHeads, mode, clock, returned);
      pass.Dispatch({q, k, v, out, lse, zeros({rows, h, d}), zeros({rows, h, d}),
                     zeros({rows, g, d}), zeros({rows, g, d})});
      pass.Attend();
      pass.Collect();
    }
  }
  EXPECT_TRUE(log.status().ok());
  arena->Release(Arena::Mark());
  return std::move(recorder.groups);
}

TEST(MessageOrder, FollowsTheRoundsOfThePlan) {
  int64_t listed = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    PoolRandom random(seed);
    const PoolDraw draw = testing_support::RandomPools(random, static_cast<int>(random(2, 9)), 120);
    const AttentionPool& pool = draw.pools[random(0, 1)];
    const DisaggregationPlan plan = testing_support::RandomPlan(random, pool);
    const bool has_residents = random.OneIn(2);
    const std::vector<AttentionLink> links = LinksOf(pool, plan.tasks);
    std::map<std::pair<int, int>, size_t> round_of;  // (from, to)
    const auto rounds = MessageRounds(pool.num_ranks, links);
    for (size_t round = 0; round < rounds.size(); ++round) {
      for (const int32_t index : rounds[round]) {
        const AttentionLink& link = links[static_cast<size_t>(index)];
        round_of[{link.from, link.to}] = round;
      }
    }
    // (from, to): numbers of each message as both ends list them, of all groups.
    std::map<std::pair<int, int>, std::vector<int64_t>> sent, received;
    for (int rank = 0; rank < pool.num_ranks; ++rank) {
      const auto groups =
          GroupsOf(pool, plan, rank, draw.rows[static_cast<size_t>(rank)], has_residents);
      // A rank with nothing to send and nothing to receive has no group.
      ASSERT_TRUE(groups.size() == 4 || groups.empty() || groups.size() == 3);
      for (size_t i = 0; i < groups.size(); ++i) {
        // Dispatch, return, dispatch, return; a return forward may be empty.
        const bool is_return = groups.size() == 4 ? i % 2 == 1 : i == 2;
        const auto round = [&](int from, int to) {
          return is_return ? round_of.at({to, from}) : round_of.at({from, to});
        };
        std::vector<size_t> order;
        for (const auto& [peer, count] : groups[i].sends) {
          order.push_back(round(rank, peer));
          sent[{rank, peer}].push_back(count);
          ++listed;
        }
        EXPECT_TRUE(std::is_sorted(order.begin(), order.end())) << "rank " << rank << " sends";
        order.clear();
        for (const auto& [peer, count] : groups[i].receives) {
          order.push_back(round(peer, rank));
          received[{peer, rank}].push_back(count);
        }
        EXPECT_TRUE(std::is_sorted(order.begin(), order.end())) << "rank " << rank << " receives";
      }
    }
    EXPECT_EQ(sent, received);
  }
  EXPECT_GT(listed, 1000);
}

}  // namespace
}  // namespace evenkeel
