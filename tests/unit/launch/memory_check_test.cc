#include "launch/memory_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "launch/rank_kinds.h"
#include "runtime/base/exit_code.h"

namespace evenkeel {
namespace {

using ::testing::HasSubstr;

RunConfig SmallRun() {
  RunConfig config;
  config.model.vocab_size = 256;
  config.model.hidden_size = 64;
  config.model.intermediate_size = 128;
  config.model.num_layers = 8;
  config.model.num_heads = 4;
  config.data.sequence_length = 4096;
  config.train.global_batch_size = 16;
  config.train.micro_batch_size = 4;
  return config;
}

int64_t Total(const RunConfig& config, int64_t micro_batch, Recompute recompute) {
  return PlanRankMemory(config, 1, micro_batch, recompute)->total();
}

MemoryBudget Host(int ranks, int64_t bytes) {
  return {bytes, ranks, "host"};
}

// Where nothing is uncertain.
absl::Status Checked(const RunConfig& config, int64_t ranks, const MemoryBudget& memory) {
  const ParallelPlan plan = *PlanParallel(config.model, config.parallel, ranks);
  std::string warning;
  absl::Status status = CheckFits(config, plan, memory, &warning);
  EXPECT_EQ(warning, "");
  return status;
}

TEST(CheckFits, AllowsWhatJustFits) {
  const RunConfig config = SmallRun();
  const int64_t need = Total(config, 4, Recompute::kNone);
  EXPECT_TRUE(Checked(config, 1, Host(1, need)).ok());
  EXPECT_FALSE(Checked(config, 1, Host(1, need - 1)).ok());
  EXPECT_TRUE(Checked(config, 1, Host(3, 3 * need)).ok());
  EXPECT_FALSE(Checked(config, 1, Host(4, 3 * need)).ok());
}

TEST(CheckFits, PlansForTheMicroBatchThatIsReallyRun) {
  RunConfig config = SmallRun();
  config.train.global_batch_size = 2;
  EXPECT_EQ(Total(config, 4, Recompute::kNone), Total(config, 2, Recompute::kNone));
}

TEST(CheckFits, NamesTheNearestRemedy) {
  const RunConfig config = SmallRun();
  const struct {
    int64_t host_bytes;
    const char* remedy;
  } cases[] = {
      {Total(config, 3, Recompute::kNone), ": train.micro_batch_size=3 fits"},
      {Total(config, 1, Recompute::kNone), ": train.micro_batch_size=1 fits"},
      {Total(config, 1, Recompute::kMlp),
       ": runtime.recompute=mlp with train.micro_batch_size=1 fits"},
      {Total(config, 1, Recompute::kAllButAttention),
       ": runtime.recompute=all_but_attention with train.micro_batch_size=1 fits"},
      {Total(config, 1, Recompute::kLayer),
       ": runtime.recompute=layer with train.micro_batch_size=1 fits"},
      {Total(config, 1, Recompute::kLayer) - 1, ": lower data.sequence_length"},
  };
  for (const auto& c : cases) {
    const absl::Status status = Checked(config, 1, Host(1, c.host_bytes));
    EXPECT_THAT(std::string(status.message()), ::testing::EndsWith(c.remedy));
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kOutOfMemory);
  }
}

TEST(CheckFits, FewerRanksAreARemedyOnlyOfSeveral) {
  const absl::Status status = Checked(SmallRun(), 1, Host(2, int64_t{1} << 23));
  EXPECT_THAT(std::string(status.message()),
              ::testing::EndsWith(": start fewer ranks a host, or lower data.sequence_length"));
}

TEST(CheckFits, ShorterSamplesAreNoRemedyOfALargeModel) {
  const MemoryPlan plan = *PlanRankMemory(SmallRun(), 1, 1, Recompute::kLayer);
  const int64_t state = plan.weights + plan.gradients + plan.optimizer;
  EXPECT_THAT(std::string(Checked(SmallRun(), 1, Host(1, state - 1)).message()),
              ::testing::EndsWith(": the model alone does not fit: spread it over more than one "
                                  "host with parallel.tp or pp"));
  EXPECT_THAT(std::string(Checked(SmallRun(), 1, Host(1, state)).message()),
              ::testing::EndsWith(": lower data.sequence_length"));
}

TEST(CheckFits, SpeaksOfTheGpuAndPlansForIt) {
  RunConfig config = SmallRun();
  const int64_t on_cpu = Total(config, 4, Recompute::kNone);
  config.runtime.device = Device::kCuda;
  EXPECT_NE(Total(config, 4, Recompute::kNone), on_cpu);
  const auto message = [&](int64_t bytes, int sharers) {
    const absl::Status status = Checked(config, 1, {bytes, sharers, "GPU"});
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kOutOfMemory);
    return std::string(status.message());
  };
  EXPECT_TRUE(Checked(config, 1, {Total(config, 4, Recompute::kNone), 1, "GPU"}).ok());
  EXPECT_THAT(message(Total(config, 4, Recompute::kNone) - 1, 1), HasSubstr("1 rank of this GPU"));
  const int64_t three = Total(config, 3, Recompute::kNone);
  EXPECT_THAT(message(three, 1), HasSubstr("the GPU has " + FormatBytes(three)));
  EXPECT_THAT(message(three, 1), ::testing::EndsWith(": train.micro_batch_size=3 fits"));
  EXPECT_THAT(message(2 * three, 2), ::testing::EndsWith(": train.micro_batch_size=3 fits"));
  EXPECT_THAT(message(Total(config, 1, Recompute::kLayer), 1),
              ::testing::EndsWith(": runtime.recompute=layer with train.micro_batch_size=1 fits"));
  EXPECT_THAT(message(int64_t{1} << 23, 2),
              ::testing::EndsWith(": start fewer ranks a GPU, or lower data.sequence_length"));
}

// Two slots of 32 MiB on each GPU of the mesh, whatever is trained; dedicated servers have none.
TEST(CheckFits, CountsTheWindowsThatCopyEnginesWriteTo) {
  RunConfig config = SmallRun();
  config.runtime.device = Device::kCuda;
  config.parallel.mesh.tp = 2;
  config.parallel.mesh.dp = 2;
  config.parallel.attention = SoftmaxExchange::kDisaggregated;
  config.parallel.attention_servers = 1;
  const auto memory_of = [&](RowTransport transport, int64_t micro_batch) {
    config.parallel.tp_transport = transport;
    const ParallelPlan plan = *PlanParallel(config.model, config.parallel, 6);
    std::vector<MemoryPlan> memory;
    for (const RankKind& kind : KindsOfRanks(plan)) {
      memory.push_back(MemoryOf(config, plan, kind, micro_batch, Recompute::kNone));
      EXPECT_EQ(memory.back().windows,
                kind.is_dedicated || transport == RowTransport::kNccl ? 0 : 67108864);
    }
    return memory;
  };
  for (const int64_t micro_batch : {1, 4}) {
    const std::vector<MemoryPlan> nccl = memory_of(RowTransport::kNccl, micro_batch);
    const std::vector<MemoryPlan> copies = memory_of(RowTransport::kCopyEngines, micro_batch);
    ASSERT_EQ(nccl.size(), 2);
    EXPECT_EQ(copies[0].total() - nccl[0].total(), 67108864);
    EXPECT_EQ(copies[1].total(), nccl[1].total());
  }
  std::string warning;
  const absl::Status status = CheckFits(config, *PlanParallel(config.model, config.parallel, 6),
                                        {int64_t{1} << 23, 1, "GPU"}, &warning);
  EXPECT_THAT(std::string(status.message()), HasSubstr(", windows of tp 64.0 MiB, "));
}

TEST(CheckFits, FindsTheRemedyOfAHugeBatchAtOnce) {
  RunConfig config = SmallRun();
  config.train.micro_batch_size = config.train.global_batch_size = 1000000;
  EXPECT_THAT(
      std::string(Checked(config, 1, Host(1, Total(config, 777, Recompute::kNone))).message()),
      ::testing::EndsWith(": train.micro_batch_size=777 fits"));
}

TEST(CheckFits, SaysHowMuchIsNeededAndThere) {
  const RunConfig config = SmallRun();
  const absl::Status status = Checked(config, 1, Host(2, int64_t{1} << 20));
  EXPECT_THAT(std::string(status.message()), HasSubstr("2 ranks of this host need"));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(FormatBytes(Total(config, 4, Recompute::kNone))));
  EXPECT_THAT(std::string(status.message()), HasSubstr("the host has 1.0 MiB"));
}

// Stages of a pipeline need differently much: what counts is what neighbours need together.
TEST(CheckFits, AddsUpTheRanksOfAHost) {
  RunConfig config = SmallRun();
  config.parallel.mesh.pp = 4;
  const int64_t largest = PlanRankMemory(config, 4, 1, Recompute::kNone)->total();
  config.train.micro_batch_size = 1;
  // The first stage keeps four micro-batches, the last one.
  int64_t fits = largest, all = 4 * largest;
  while (fits < all) {
    const int64_t middle = fits + (all - fits) / 2;
    if (Checked(config, 4, Host(4, middle)).ok()) {
      all = middle;
    } else {
      fits = middle + 1;
    }
  }
  EXPECT_GT(fits, 2 * largest);
  EXPECT_LT(fits, 3 * largest);
  EXPECT_TRUE(Checked(config, 4, Host(1, largest)).ok());
  const absl::Status status = Checked(config, 4, Host(4, fits - 1));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("together, the largest " + FormatBytes(largest)));
}

TEST(CheckFits, ReplicasShareTheStateWhereThatHelps) {
  RunConfig config = SmallRun();
  config.data.sequence_length = 16;
  config.model.hidden_size = 256;
  config.train.micro_batch_size = 1;
  config.parallel.zero = ShardingStage::kGradients;
  const int64_t need = PlanRankMemory(config, 4, 1, Recompute::kLayer)->total();
  config.parallel.zero = ShardingStage::kNone;
  EXPECT_THAT(std::string(Checked(config, 4, Host(1, need)).message()),
              ::testing::EndsWith(": parallel.zero=2 and runtime.recompute=layer with "
                                  "train.micro_batch_size=1 fits"));
  EXPECT_THAT(std::string(Checked(config, 4, Host(1, 1 << 20)).message()),
              ::testing::EndsWith(": raise parallel.tp, pp or cp, or lower data.sequence_length"));
}

// A dedicated server without weights may still be the rank that needs most: of all replicas'
// queries.
TEST(CheckFits, CoversDedicatedServers) {
  RunConfig config = SmallRun();
  config.model.num_layers = 1;
  config.parallel.mesh.dp = 8;
  config.parallel.attention = SoftmaxExchange::kDisaggregated;
  config.parallel.attention_servers = 1;
  config.train.micro_batch_size = 2;
  const ParallelPlan plan = *PlanParallel(config.model, config.parallel, 9);
  const std::vector<RankKind> kinds = KindsOfRanks(plan);
  ASSERT_EQ(kinds.size(), 2);
  EXPECT_EQ(NameOf(plan, kinds[1]), "server");
  EXPECT_EQ(kinds[1].num_ranks, 1);
  const MemoryPlan replica = MemoryOf(config, plan, kinds[0], 2, Recompute::kNone);
  const MemoryPlan server = MemoryOf(config, plan, kinds[1], 2, Recompute::kNone);
  EXPECT_EQ(server.total(), server.attention);
  ASSERT_GT(server.total(), replica.total());
  EXPECT_EQ(PlanRankMemory(config, 9, 2, Recompute::kNone)->total(), server.total());
  EXPECT_TRUE(Checked(config, 9, Host(1, server.total())).ok());
  // Its buffers have a bound, so a run is warned and not refused.
  std::string warning;
  EXPECT_TRUE(CheckFits(config, plan, Host(1, server.total() - 1), &warning).ok());
  EXPECT_THAT(warning, ::testing::StartsWith("this run may not fit: 1 rank of this host needs at "
                                             "most "));
  EXPECT_THAT(warning,
              HasSubstr(absl::StrCat("(server: weights, gradients and optimizer 0 B, activations 0 "
                                     "B, workspace 0 B, attention buffers ",
                                     FormatBytes(server.attention), ")")));
  EXPECT_THAT(warning,
              ::testing::EndsWith(": parallel.attention_servers=4 on 3 more ranks fits; without "
                                  "more ranks: train.micro_batch_size=1 fits"));
  // They come after the mesh, and share the last host.
  EXPECT_TRUE(Checked(config, 9, Host(9, 8 * replica.total() + server.total())).ok());
  warning.clear();
  EXPECT_TRUE(
      CheckFits(config, plan, Host(9, 8 * replica.total() + server.total() - 1), &warning).ok());
  EXPECT_NE(warning, "");
  // Without any buffer it does not fit either.
  const int64_t certain = replica.total() - replica.attention;
  EXPECT_TRUE(CheckFits(config, plan, Host(1, certain), &warning).ok());
  const absl::Status status = CheckFits(config, plan, Host(1, certain - 1), &warning);
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kOutOfMemory);
  EXPECT_THAT(std::string(status.message()), ::testing::StartsWith("this run does not fit: "));
}

}  // namespace
}  // namespace evenkeel
