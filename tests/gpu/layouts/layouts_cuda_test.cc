// Layouts over GPUs in bf16: the gradients of a model spread over ranks are as near those of one
// CPU rank in float64 as those of one GPU are. On as many GPUs as there are; with fewer than ranks,
// all ranks share the first.
//
// EVENKEEL_LAYOUT_DRAWS: how many layouts to draw; EVENKEEL_LAYOUT_SEED: the first of them;
// EVENKEEL_LAYOUT_TOKENS: how many tokens to compare of each, at least.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "models/pipeline_run.h"
#include "runtime/comm/gpu_comm.h"
#include "runtime/comm/mpi_runtime.h"
#include "runtime/comm/self_communicator.h"
#include "runtime/ops/gpu.h"
#include "runtime/ops/host_mirror.h"
#include "tests/gpu/layouts/rounded_partials.h"
#include "tests/mpi/layouts/layout_draw.h"
#include "tests/support/tiny_models.h"

namespace evenkeel {
namespace {

using testing_support::DrawLayout;
using testing_support::DrawPooledLayout;
using testing_support::LayoutCase;
using testing_support::RandomBatch;
using testing_support::RoundedPartials;
using testing_support::RoundToBf16;
using testing_support::TestRuntime;

int64_t FromEnvironment(const char* name, int64_t otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoll(text);
}

// A rank with its GPU. Null on every rank if one of them has none.
struct GpuRank {
  static std::unique_ptr<GpuRank> Create() {
    MpiRuntime mpi = *MpiRuntime::Create({.timeout_s = 100});
    int64_t gpus = NumGpus();
    EXPECT_TRUE(
        mpi.world().AllReduce(TensorView(&gpus, DType::kI64, {1}), ReduceOp::kMin, "GPUs").ok());
    if (gpus == 0) return nullptr;
    const bool shares = gpus < mpi.local_size();
    auto gpu = *OpenGpu(shares ? 0 : mpi.local_rank());
    return std::unique_ptr<GpuRank>(new GpuRank(std::move(mpi), std::move(gpu), shares));
  }

  GpuRank(MpiRuntime runtime, std::shared_ptr<CudaOps> ops, bool shares_gpu)
      : mpi(std::move(runtime)), gpu(std::move(ops)) {
    if (mpi.world().size() == 1) return;
    comm = *OpenGpuComm(mpi.world(), DeviceOf(*gpu), {.timeout_s = 60, .shares_gpu = shares_gpu});
  }

  Communicator& device_world() { return comm == nullptr ? mpi.world() : comm->world(); }

  MpiRuntime mpi;
  std::shared_ptr<CudaOps> gpu;
  MemoryTracker tracker;
  ThreadPool pool{2};
  Arena arena = *Arena::CreateOnGpu(DeviceOf(*gpu), int64_t{4} << 30, tracker);
  OpContext context{pool, arena, DType::kBF16, gpu.get()};
  std::unique_ptr<GpuComm> comm;
};

// The drawn layout with a model that a GPU's kernels take.
LayoutCase ForGpu(LayoutCase layout) {
  layout.model.hidden_size = 64;
  layout.model.head_dim = 16;
  layout.model.intermediate_size = 8 * 24;
  layout.model.vocab_size = 264;
  layout.model.block_size = 64;
  return layout;
}

PoolStep PlanPool(const LayoutCase& layout, const ParallelPlan& plan,
                  const std::vector<std::vector<PackedBatch>>& batches, const MeshCoord& at,
                  DType dtype, bool trains) {
  PoolPlanOptions options = plan.pool_options(dtype);
  options.speed = layout.pool_speed;
  options.speed.resize(static_cast<size_t>(plan.pool().num_ranks()), 1);
  std::vector<std::vector<std::vector<int64_t>>> cu_seqlens;
  for (const auto& replica : batches) {
    cu_seqlens.emplace_back();
    for (const PackedBatch& batch : replica) cu_seqlens.back().push_back(batch.cu_seqlens);
  }
  const int rank = plan.pool().RankOf(at.pp, at.dp, at.cp);
  return trains ? PlanPoolStep(plan.pool(), options, cu_seqlens, rank)
                : PlanPoolForward(plan.pool(), options, cu_seqlens, rank);
}

std::vector<std::vector<PackedBatch>> BatchesOf(const LayoutCase& layout, uint64_t round) {
  std::vector<std::vector<PackedBatch>> batches;
  uint64_t seed = 1 + 1000 * round;
  for (const auto& replica : layout.lengths) {
    batches.emplace_back();
    for (const auto& documents : replica) {
      batches.back().push_back(RandomBatch(documents, layout.model.vocab_size, ++seed));
    }
  }
  return batches;
}

// Weights of the whole model that bf16 holds exactly.
std::vector<float> WholeWeights(const ModelConfig& config, uint64_t round) {
  const ParameterLayout layout(config);
  std::vector<float> weights(static_cast<size_t>(layout.num_elements()));
  ThreadPool pool(1);
  layout.Initialize(pool, 1 + round,
                    TensorView(weights.data(), DType::kF32, {layout.num_elements()}));
  for (float& weight : weights) weight = RoundToBf16(weight);
  return weights;
}

// Errors over few tokens are few draws of rounding errors, which say little about their size:
// rounds with other weights and tokens, until there are so many.
constexpr int64_t kTokensToCompare = 64;
constexpr int64_t kMaxRounds = 256;

int64_t NumRounds(const LayoutCase& layout) {
  int64_t tokens = 0;
  for (const auto& replica : layout.lengths) {
    for (const auto& documents : replica) {
      for (const int64_t length : documents) tokens += length;
    }
  }
  if (tokens == 0) return 1;
  const int64_t wanted = FromEnvironment("EVENKEEL_LAYOUT_TOKENS", kTokensToCompare);
  return std::min(kMaxRounds, (wanted + tokens - 1) / tokens);
}

// What a round leaves behind: gradients, the sum of losses, in training and in evaluation, the
// squared norm of the gradient.
struct Outcome {
  std::vector<double> gradients;
  double loss = 0;
  double held_out = 0;
  double squares = 0;
};

void Check(const absl::Status& status) {
  ASSERT_TRUE(status.ok()) << status;
}

// All rounds of the layout on these ranks. `device` has the tensors of the context, `host` those of
// the host.
void Run(const OpContext& context, MemoryTracker& tracker, const LayoutCase& layout,
         const ParallelPlan& plan, Communicator& host, Communicator& device,
         std::vector<Outcome>* outcomes) {
  MeshCommsOptions comms = plan.comms();
  const ArenaScope comms_scope(context.arena);
  comms.scratch = context.arena.AllocateZero(DType::kF32, {1}, MemoryPurpose::kWorkspace);
  auto mesh = MeshComms::Create(device, comms);
  ASSERT_TRUE(mesh.ok()) << mesh.status();
  const MeshCoord& at = (*mesh)->coord();
  ModelSetup setup;
  setup.part = plan.PartOf(at);
  setup.axes = (*mesh)->axes();
  setup.context = plan.context;
  setup.sharding = plan.sharding;
  setup.bucket_elements = 5000;
  auto model = Model::Create(context, layout.model, setup, tracker);
  ASSERT_TRUE(model.ok()) << model.status();
  PipelineRun pipeline(context, *model, (*mesh)->links(), (*mesh)->shape(), at.pp, tracker);
  for (int64_t r = 0; r < NumRounds(layout); ++r) {
    const auto round = static_cast<uint64_t>(r);
    {
      HostMirror mirror = *HostMirror::Create(context, model->weights());
      const TensorView mine = mirror.view();
      std::vector<float> weights = WholeWeights(layout.model, round);
      std::vector<double> wide(weights.begin(), weights.end());
      const Shape shape = {static_cast<int64_t>(weights.size())};
      const TensorView whole = mine.dtype == DType::kF64
                                   ? TensorView(wide.data(), DType::kF64, shape)
                                   : TensorView(weights.data(), DType::kF32, shape);
      Check(ScatterState(host, plan.placement(), ParameterLayout(layout.model), {&whole, 1},
                         {&mine, 1}));
      Check(mirror.Upload(context));
      model->PublishWeights(context);
    }
    model->DropGradients(context);
    const auto batches = BatchesOf(layout, round);
    const ArenaScope scope(context.arena);
    const TensorView sums = context.arena.AllocateZero(DType::kF64, {2}, MemoryPurpose::kWorkspace);
    // One rank alone runs all replicas' micro-batches.
    std::vector<PackedBatch> mine;
    for (size_t replica = 0; replica < batches.size(); ++replica) {
      if (plan.mesh.dp > 1 && static_cast<int>(replica) != at.dp) continue;
      mine.insert(mine.end(), batches[replica].begin(), batches[replica].end());
    }
    std::vector<TokenLosses> held_out;
    if (plan.pools_attention()) {
      PoolStep step = PlanPool(layout, plan, batches, at, context.dtype, /*trains=*/true);
      PoolStep forward = PlanPool(layout, plan, batches, at, context.dtype, /*trains=*/false);
      const PoolSetup pool{(*mesh)->pool(), plan.pool_heads(), plan.server_mode,
                           static_cast<int64_t>(mine.size())};
      Check(pipeline.TrainPooled(mine, 0.01, layout.recompute, sums.Rows(0, 1), pool, step));
      Check(pipeline.LossesPooled(mine, layout.recompute, pool, forward, &held_out));
    } else {
      Check(pipeline.Train(mine, 0.01, layout.recompute, sums.Rows(0, 1)));
      Check(pipeline.Losses(mine, &held_out));
    }
    model->FinishGradients(context, sums.Rows(1, 2));
    double values[2] = {0, 0};
    Check(ReadDoubles(context, sums, absl::MakeSpan(values)));
    Check((*mesh)->log().status());
    Outcome& outcome = outcomes->emplace_back();
    outcome.loss = at.tp == 0 && at.pp + 1 == plan.mesh.pp ? values[0] : 0;
    for (const TokenLosses& batch : held_out) {
      for (const double each : batch.losses) outcome.held_out += at.tp == 0 ? each : 0;
    }
    outcome.squares = values[1];
    outcome.gradients.resize(static_cast<size_t>(model->store().num_owned()));
    Check(ReadDoubles(context, model->gradients().view(), absl::MakeSpan(outcome.gradients)));
    Check(host.AllReduce(TensorView(&outcome.loss, DType::kF64, {1}), ReduceOp::kSum, "loss"));
    Check(host.AllReduce(TensorView(&outcome.held_out, DType::kF64, {1}), ReduceOp::kSum,
                         "held-out loss"));
  }
}

// Errors of one parameter, or of all, on this rank: sums of squares over rounds.
struct Errors {
  double layout = 0, alone = 0;
  // Of partial sums alone (RoundedPartials).
  double partials = 0;
  double length = 0;  // of what is exact

  void Add(double got, double one_gpu, double rounded, double want) {
    layout += (got - want) * (got - want);
    alone += (one_gpu - want) * (one_gpu - want);
    partials += (rounded - want) * (rounded - want);
    length += want * want;
  }
  // What is to be expected of the layout: one GPU's rounding, and that of partial sums.
  double expected() const { return std::sqrt(alone + partials); }
};

void CompareLayout(const LayoutCase& layout, GpuRank& rank) {
  SCOPED_TRACE(layout.ToString());
  const auto self = MakeSelfCommunicator();
  Communicator& host = rank.mpi.world();
  auto alone_plan = PlanParallel(layout.model, ParallelConfig(), 1);
  auto plan = PlanParallel(layout.model, layout.parallel, host.size());
  ASSERT_TRUE(alone_plan.ok() && plan.ok()) << plan.status();
  std::vector<Outcome> want, alone, got, rounded;
  TestRuntime cpu;
  Run(cpu.context, cpu.tracker, layout, *alone_plan, *self, *self, &want);
  Run(rank.context, rank.tracker, layout, *alone_plan, *self, *self, &alone);
  Run(rank.context, rank.tracker, layout, *plan, host, rank.device_world(), &got);
  if (plan->mesh.tp > 1) {
    RoundedPartials world(host);
    Run(cpu.context, cpu.tracker, layout, *plan, host, world, &rounded);
  }
  if (testing::Test::HasFailure()) return;

  const RankPlacement place = plan->placement()(host.rank());
  const ParameterLayout whole(layout.model);
  std::map<std::string, int64_t> offset_of;
  for (const ParameterSpec& spec : whole.specs()) offset_of[spec.name] = spec.offset;
  std::map<std::string, Errors> by_parameter;
  Errors loss, held_out, norm;
  for (size_t r = 0; r < want.size(); ++r) {
    const bool is_rounded = plan->mesh.tp > 1;
    loss.Add(got[r].loss, alone[r].loss, is_rounded ? rounded[r].loss : want[r].loss, want[r].loss);
    held_out.Add(got[r].held_out, alone[r].held_out,
                 is_rounded ? rounded[r].held_out : want[r].held_out, want[r].held_out);
    norm.Add(std::sqrt(got[r].squares), std::sqrt(alone[r].squares),
             std::sqrt(is_rounded ? rounded[r].squares : want[r].squares),
             std::sqrt(want[r].squares));
    for (const ParameterSpec& spec : place.layout.specs()) {
      Errors& errors = by_parameter[spec.name];
      ForEachRun(spec, [&](int64_t local, int64_t full, int64_t count) {
        ForEachOwnedRun(place.owned, spec.offset + local, count,
                        [&](int64_t to, int64_t first, int64_t length) {
                          for (int64_t i = 0; i < length; ++i) {
                            const auto w = static_cast<size_t>(offset_of.at(spec.name) + full +
                                                               first - spec.offset - local + i);
                            const auto o = static_cast<size_t>(to + i);
                            const double exact = want[r].gradients[w];
                            errors.Add(got[r].gradients[o], alone[r].gradients[w],
                                       is_rounded ? rounded[r].gradients[o] : exact, exact);
                          }
                        });
      });
    }
  }

  // TransNormer v1 bends at zero and divides by the size of small sums: what is rounded otherwise,
  // partial sums, shows many times over.
  const bool is_rough = layout.model_name.find("transnormer") == 0;
  EXPECT_LE(std::sqrt(loss.layout), 2 * loss.expected() + 2e-3 * std::sqrt(loss.length));
  EXPECT_LE(std::sqrt(held_out.layout),
            2 * held_out.expected() + 2e-3 * std::sqrt(held_out.length));
  EXPECT_LE(std::sqrt(norm.layout),
            (is_rough ? 6 : 2) * norm.expected() + 0.02 * std::sqrt(norm.length) + 1e-9);
  // Of what cancels to zero, as the gradient of a query that sees one key, float32's rounding is
  // left.
  const double floor = 1e-6 * std::sqrt(norm.length);
  Errors all;
  for (const auto& [name, errors] : by_parameter) {
    if (errors.length == 0) continue;
    const double length = std::sqrt(errors.length);
    // Small parameters scatter: each within a few times of what is expected.
    EXPECT_LE(std::sqrt(errors.layout), (is_rough ? 10 * errors.expected() + 0.1 * length
                                                  : 3 * errors.expected() + 0.02 * length) +
                                            floor)
        << name << ": off by " << std::sqrt(errors.layout) / length << ", one GPU by "
        << std::sqrt(errors.alone) / length << ", partial sums by "
        << std::sqrt(errors.partials) / length;
    all.layout += errors.layout;
    all.alone += errors.alone;
    all.partials += errors.partials;
    all.length += errors.length;
  }
  const double length = std::sqrt(all.length);
  EXPECT_LE(std::sqrt(all.layout), (is_rough ? 6 : 1.5) * all.expected() + 0.002 * length);
  if (host.rank() == 0) {
    const double unit = std::max(length, 1e-300);
    std::printf("%s\n  %zu rounds, error %.4f, one GPU %.4f, partial sums %.4f\n",
                layout.ToString().c_str(), want.size(), std::sqrt(all.layout) / unit,
                std::sqrt(all.alone) / unit, std::sqrt(all.partials) / unit);
    std::fflush(stdout);
  }
}

class LayoutsCuda : public testing::Test {
 protected:
  static void SetUpTestSuite() { rank_ = GpuRank::Create(); }
  static void TearDownTestSuite() { rank_ = nullptr; }
  void SetUp() override {
    if (rank_ == nullptr) GTEST_SKIP() << "no GPU";
  }

  void DrawAndCompare(LayoutCase (*draw)(uint64_t seed, int ranks));

  static inline std::unique_ptr<GpuRank> rank_;
};

void LayoutsCuda::DrawAndCompare(LayoutCase (*draw)(uint64_t seed, int ranks)) {
  const int64_t draws = FromEnvironment("EVENKEEL_LAYOUT_DRAWS", 12);
  const auto seed = static_cast<uint64_t>(FromEnvironment("EVENKEEL_LAYOUT_SEED", 1));
  Communicator& host = rank_->mpi.world();
  for (int64_t i = 0; i < draws; ++i) {
    const LayoutCase layout = ForGpu(draw(seed + static_cast<uint64_t>(i), host.size()));
    CompareLayout(layout, *rank_);
    if (HasFailure()) return;
  }
}

TEST_F(LayoutsCuda, AreAsExactAsOneGpu) {
  DrawAndCompare(DrawLayout);
}

TEST_F(LayoutsCuda, AreAsExactAsOneGpuWithDisaggregatedAttention) {
  DrawAndCompare(DrawPooledLayout);
}

}  // namespace
}  // namespace evenkeel
