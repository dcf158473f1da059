// Layouts over GPUs in bf16: the gradients of a model spread over ranks are as near those of one
// CPU rank in float64 as those of one GPU are. On as many GPUs as there are; with fewer than ranks,
// all ranks share the first.
//
// EVENKEEL_LAYOUT_DRAWS: how many layouts to draw; EVENKEEL_LAYOUT_SEED: the first of them.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
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
#include "tests/mpi/layouts/layout_draw.h"
#include "tests/support/tiny_models.h"

namespace evenkeel {
namespace {

using testing_support::DrawLayout;
using testing_support::DrawPooledLayout;
using testing_support::LayoutCase;
using testing_support::RandomBatch;
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

float RoundToBf16(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  word = (word + 0x7fff + ((word >> 16) & 1)) & 0xffff0000u;
  std::memcpy(&value, &word, 4);
  return value;
}

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
                  const std::vector<std::vector<PackedBatch>>& batches, const MeshCoord& at) {
  PoolPlanOptions options = plan.pool_options(DType::kBF16);
  options.speed = layout.pool_speed;
  options.speed.resize(static_cast<size_t>(plan.pool().num_ranks()), 1);
  std::vector<std::vector<std::vector<int64_t>>> cu_seqlens;
  for (const auto& replica : batches) {
    cu_seqlens.emplace_back();
    for (const PackedBatch& batch : replica) cu_seqlens.back().push_back(batch.cu_seqlens);
  }
  return PlanPoolStep(plan.pool(), options, cu_seqlens, plan.pool().RankOf(at.pp, at.dp, at.cp));
}

std::vector<std::vector<PackedBatch>> BatchesOf(const LayoutCase& layout) {
  std::vector<std::vector<PackedBatch>> batches;
  uint64_t seed = 1;
  for (const auto& replica : layout.lengths) {
    batches.emplace_back();
    for (const auto& documents : replica) {
      batches.back().push_back(RandomBatch(documents, layout.model.vocab_size, ++seed));
    }
  }
  return batches;
}

// Weights of the whole model that bf16 holds exactly.
std::vector<float> WholeWeights(const ModelConfig& config) {
  const ParameterLayout layout(config);
  std::vector<float> weights(static_cast<size_t>(layout.num_elements()));
  ThreadPool pool(1);
  layout.Initialize(pool, 1, TensorView(weights.data(), DType::kF32, {layout.num_elements()}));
  for (float& weight : weights) weight = RoundToBf16(weight);
  return weights;
}

// Squared distance and squared length.
struct Distance {
  double error = 0;
  double length = 0;
};

class LayoutsCuda : public testing::Test {
 protected:
  static void SetUpTestSuite() { rank_ = GpuRank::Create(); }
  static void TearDownTestSuite() { rank_ = nullptr; }
  void SetUp() override {
    if (rank_ == nullptr) GTEST_SKIP() << "no GPU";
  }

  static void Check(const absl::Status& status) { ASSERT_TRUE(status.ok()) << status; }

  // Gradients of the layout on these ranks' GPUs, or of the whole model on this one.
  static void RunOnGpu(const LayoutCase& layout, const ParallelPlan& plan, Communicator& host,
                       Communicator& device, const std::vector<float>& weights,
                       std::vector<double>* owned, double* loss, double* squares) {
    GpuRank& rank = *rank_;
    MeshCommsOptions comms = plan.comms();
    const ArenaScope comms_scope(rank.arena);
    comms.scratch = rank.arena.AllocateZero(DType::kF32, {1}, MemoryPurpose::kWorkspace);
    auto mesh = MeshComms::Create(device, comms);
    ASSERT_TRUE(mesh.ok()) << mesh.status();
    ModelSetup setup;
    setup.part = plan.PartOf((*mesh)->coord());
    setup.axes = (*mesh)->axes();
    setup.context = plan.context;
    setup.sharding = plan.sharding;
    setup.bucket_elements = 5000;
    auto model = Model::Create(rank.context, layout.model, setup, rank.tracker);
    ASSERT_TRUE(model.ok()) << model.status();
    {
      HostMirror mirror = *HostMirror::Create(rank.context, model->weights());
      std::vector<float> copy = weights;
      const TensorView whole(copy.data(), DType::kF32, {static_cast<int64_t>(copy.size())});
      const TensorView mine = mirror.view();
      Check(ScatterState(host, plan.placement(), ParameterLayout(layout.model), {&whole, 1},
                         {&mine, 1}));
      Check(mirror.Upload(rank.context));
      model->PublishWeights(rank.context);
    }
    {
      PipelineRun pipeline(rank.context, *model, (*mesh)->links(), (*mesh)->shape(),
                           (*mesh)->coord().pp, rank.tracker);
      const auto batches = BatchesOf(layout);
      const ArenaScope scope(rank.arena);
      const TensorView sums = rank.arena.AllocateZero(DType::kF64, {2}, MemoryPurpose::kWorkspace);
      // One rank alone runs all replicas' micro-batches.
      std::vector<PackedBatch> mine;
      for (size_t replica = 0; replica < batches.size(); ++replica) {
        if (plan.mesh.dp > 1 && static_cast<int>(replica) != (*mesh)->coord().dp) continue;
        mine.insert(mine.end(), batches[replica].begin(), batches[replica].end());
      }
      if (plan.pools_attention()) {
        PoolStep step = PlanPool(layout, plan, batches, (*mesh)->coord());
        const PoolSetup pool{(*mesh)->pool(), plan.pool_heads(), plan.server_mode};
        Check(pipeline.TrainPooled(mine, 0.01, layout.recompute, sums.Rows(0, 1), pool, step));
      } else {
        Check(pipeline.Train(mine, 0.01, layout.recompute, sums.Rows(0, 1)));
      }
      model->FinishGradients(rank.context, sums.Rows(1, 2));
      double values[2] = {0, 0};
      Check(ReadDoubles(rank.context, sums, absl::MakeSpan(values)));
      Check((*mesh)->log().status());
      const MeshCoord& at = (*mesh)->coord();
      *loss = at.tp == 0 && at.pp + 1 == plan.mesh.pp ? values[0] : 0;
      *squares = values[1];
      owned->resize(static_cast<size_t>(model->store().num_owned()));
      Check(ReadDoubles(rank.context, model->gradients().view(), absl::MakeSpan(*owned)));
    }
    Check(host.AllReduce(TensorView(loss, DType::kF64, {1}), ReduceOp::kSum, "loss"));
  }

  void DrawAndCompare(LayoutCase (*draw)(uint64_t seed, int ranks));

  static inline std::unique_ptr<GpuRank> rank_;
};

void CompareLayout(const LayoutCase& layout, Communicator& host, GpuRank& rank,
                   const std::function<void(const ParallelPlan&, Communicator&, Communicator&,
                                            const std::vector<float>&, std::vector<double>*,
                                            double*, double*)>& run) {
  SCOPED_TRACE(layout.ToString());
  const std::vector<float> weights = WholeWeights(layout.model);
  // The CPU in float64.
  TestRuntime cpu;
  auto exact = Model::Create(cpu.context, layout.model, true, cpu.tracker);
  ASSERT_TRUE(exact.ok()) << exact.status();
  for (size_t i = 0; i < weights.size(); ++i) {
    exact->weights().view().as<double>()[i] = static_cast<double>(weights[i]);
  }
  double want_loss = 0;
  for (const auto& replica : BatchesOf(layout)) {
    for (const PackedBatch& batch : replica) {
      if (batch.tokens.empty()) continue;
      exact->ForwardBackward(cpu.context, batch, 0.01, Recompute::kNone, false,
                             TensorView(&want_loss, DType::kF64, {1}));
    }
  }
  double want_squares = 0;
  exact->FinishGradients(cpu.context, TensorView(&want_squares, DType::kF64, {1}));
  const double* want = exact->gradients().view().as<double>();
  // One GPU, and this layout.
  const auto self = MakeSelfCommunicator();
  auto alone_plan = PlanParallel(layout.model, ParallelConfig(), 1);
  auto plan = PlanParallel(layout.model, layout.parallel, host.size());
  ASSERT_TRUE(alone_plan.ok() && plan.ok()) << plan.status();
  std::vector<double> alone, owned;
  double alone_loss = 0, alone_squares = 0, loss = 0, squares = 0;
  run(*alone_plan, *self, *self, weights, &alone, &alone_loss, &alone_squares);
  run(*plan, host, rank.device_world(), weights, &owned, &loss, &squares);
  if (testing::Test::HasFatalFailure()) return;
  // TransNormer v1 bends at zero and divides by the size of small sums: what is rounded otherwise,
  // partial sums, shows many times over.
  const bool is_rough = layout.model_name.find("transnormer") == 0;
  EXPECT_NEAR(loss, want_loss, 2 * std::abs(alone_loss - want_loss) + 2e-3 * want_loss);
  EXPECT_NEAR(std::sqrt(squares), std::sqrt(want_squares), 0.1 * std::sqrt(want_squares) + 1e-9);
  const RankPlacement place = plan->placement()(host.rank());
  const ParameterLayout whole(layout.model);
  std::map<std::string, int64_t> offset_of;
  for (const ParameterSpec& spec : whole.specs()) offset_of[spec.name] = spec.offset;
  Distance all, all_alone;
  for (const ParameterSpec& spec : place.layout.specs()) {
    Distance here, there;
    ForEachRun(spec, [&](int64_t local, int64_t full, int64_t count) {
      ForEachOwnedRun(place.owned, spec.offset + local, count,
                      [&](int64_t to, int64_t first, int64_t length) {
                        for (int64_t i = 0; i < length; ++i) {
                          const auto w = static_cast<size_t>(offset_of.at(spec.name) + full +
                                                             first - spec.offset - local + i);
                          const double a = owned[static_cast<size_t>(to + i)] - want[w];
                          const double b = alone[w] - want[w];
                          here.error += a * a;
                          there.error += b * b;
                          here.length += want[w] * want[w];
                        }
                      });
    });
    if (here.length == 0) continue;
    // Small parameters scatter: each within a few times of what one GPU is off.
    const double bound = is_rough ? 10 * std::sqrt(there.error) + 0.1 * std::sqrt(here.length)
                                  : 3 * std::sqrt(there.error) + 0.02 * std::sqrt(here.length);
    EXPECT_LE(std::sqrt(here.error), bound)
        << spec.name << ": off by " << std::sqrt(here.error / here.length) << ", one GPU by "
        << std::sqrt(there.error / here.length);
    all.error += here.error;
    all.length += here.length;
    all_alone.error += there.error;
  }
  EXPECT_LE(std::sqrt(all.error),
            (is_rough ? 6 : 1.5) * std::sqrt(all_alone.error) + 0.002 * std::sqrt(all.length));
  if (host.rank() == 0) {
    std::printf("%s\n  error %.4f, one GPU %.4f\n", layout.ToString().c_str(),
                std::sqrt(all.error / std::max(all.length, 1e-300)),
                std::sqrt(all_alone.error / std::max(all.length, 1e-300)));
    std::fflush(stdout);
  }
}

void LayoutsCuda::DrawAndCompare(LayoutCase (*draw)(uint64_t seed, int ranks)) {
  const int64_t draws = FromEnvironment("EVENKEEL_LAYOUT_DRAWS", 12);
  const auto seed = static_cast<uint64_t>(FromEnvironment("EVENKEEL_LAYOUT_SEED", 1));
  Communicator& host = rank_->mpi.world();
  for (int64_t i = 0; i < draws; ++i) {
    const LayoutCase layout = ForGpu(draw(seed + static_cast<uint64_t>(i), host.size()));
    CompareLayout(layout, host, *rank_,
                  [&](const ParallelPlan& plan, Communicator& ranks, Communicator& device,
                      const std::vector<float>& weights, std::vector<double>* owned, double* loss,
                      double* squares) {
                    RunOnGpu(layout, plan, ranks, device, weights, owned, loss, squares);
                  });
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
