// A model trained under a layout, beside the same model on one rank.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "launch/parallel_config.h"
#include "models/optimizer.h"
#include "models/pipeline_run.h"
#include "models/pooled_pass.h"
#include "models/state_placement.h"
#include "parallel/mesh_comms.h"
#include "tests/mpi/layouts/layout_draw.h"
#include "tests/support/tiny_models.h"

namespace evenkeel::testing_support {

// Micro-batches of all replicas, [dp][micro-batch].
inline std::vector<std::vector<PackedBatch>> BatchesOf(const LayoutCase& layout, uint64_t seed) {
  std::vector<std::vector<PackedBatch>> batches;
  for (const auto& replica : layout.lengths) {
    batches.emplace_back();
    for (const auto& documents : replica) {
      batches.back().push_back(RandomBatch(documents, layout.model.vocab_size, ++seed));
    }
  }
  return batches;
}

// Their documents as prefix sums.
inline std::vector<std::vector<std::vector<int64_t>>> CuSeqlensOf(
    const std::vector<std::vector<PackedBatch>>& batches) {
  std::vector<std::vector<std::vector<int64_t>>> cu_seqlens;
  for (const auto& replica : batches) {
    cu_seqlens.emplace_back();
    for (const PackedBatch& batch : replica) cu_seqlens.back().push_back(batch.cu_seqlens);
  }
  return cu_seqlens;
}

// Weights that no gradient vanishes for by symmetry: the initial ones, biases and gains shaken.
inline void FillWeights(TestRuntime& runtime, const ModelConfig& config, TensorView flat) {
  const ParameterLayout layout(config);
  layout.Initialize(runtime.pool, 1, flat);
  DispatchFloat(flat.dtype, [&]<typename T>() {
    for (const ParameterSpec& spec : layout.specs()) {
      if (spec.init != InitKind::kZero && spec.init != InitKind::kOne) continue;
      const Philox random(1, static_cast<uint64_t>(spec.offset) + 5);
      for (int64_t i = 0; i < spec.size(); ++i) {
        flat.as<T>()[spec.offset + i] +=
            static_cast<T>(0.3 * random.Normal(static_cast<uint64_t>(i)));
      }
    }
  });
}

struct StepOutcome {
  double loss = 0;
  double squares = 0;  // of the gradient
};

// One rank with the whole model.
struct WholeRun {
  WholeRun(const LayoutCase& layout, DType dtype)
      : runtime(dtype),
        model(*Model::Create(runtime.context, layout.model, true, runtime.tracker)),
        optimizer(*Optimizer::Create(runtime.context, model, AdamWConfig(), runtime.tracker)) {
    FillWeights(runtime, layout.model, model.weights().view());
  }

  StepOutcome Gradients(const LayoutCase& layout,
                        const std::vector<std::vector<PackedBatch>>& batches, double scale) {
    double sums[2] = {0, 0};
    for (size_t m = 0; m < batches[0].size(); ++m) {
      for (const auto& replica : batches) {
        if (replica[m].tokens.empty()) continue;
        model.ForwardBackward(runtime.context, replica[m], scale, layout.recompute, false,
                              TensorView(&sums[0], DType::kF64, {1}));
      }
    }
    model.FinishGradients(runtime.context, TensorView(&sums[1], DType::kF64, {1}));
    return {sums[0], sums[1]};
  }

  TestRuntime runtime;
  Model model;
  Optimizer optimizer;
};

// This rank's part under the layout.
struct PartRun {
  // `mesh_comm`: of the ranks of the mesh, where others are dedicated servers.
  PartRun(const LayoutCase& layout, Communicator& comm, DType dtype,
          Communicator* mesh_comm = nullptr)
      : runtime(dtype),
        world(mesh_comm == nullptr ? comm : *mesh_comm),
        plan(*PlanParallel(layout.model, layout.parallel, comm.size())),
        mesh(*MeshComms::Create(comm, plan.comms())),
        model(MakeModel(layout)),
        optimizer(*Optimizer::Create(runtime.context, model, AdamWConfig(), runtime.tracker)),
        pipeline(runtime.context, model, mesh->links(), mesh->shape(), mesh->coord().pp,
                 runtime.tracker),
        place(plan.placement()(comm.rank())) {
    const ParameterLayout whole(layout.model);
    std::vector<char> flat(static_cast<size_t>(whole.num_elements() * SizeOf(dtype)));
    const TensorView view(flat.data(), dtype, {whole.num_elements()});
    FillWeights(runtime, layout.model, view);
    const TensorView mine = model.weights().view();
    EXPECT_TRUE(ScatterState(world, plan.placement(), whole, {&view, 1}, {&mine, 1}).ok());
    model.PublishWeights(runtime.context);
  }

  Model MakeModel(const LayoutCase& layout) {
    ModelSetup setup;
    setup.part = plan.PartOf(mesh->coord());
    setup.axes = mesh->axes();
    setup.context = plan.context;
    setup.sharding = plan.sharding;
    setup.bucket_elements = 700;
    return *Model::Create(runtime.context, layout.model, setup, runtime.tracker);
  }

  PoolStep PlanPool(const LayoutCase& layout,
                    const std::vector<std::vector<PackedBatch>>& batches) const {
    return PlanPoolStep(plan.pool(), PoolOptions(layout), CuSeqlensOf(batches), pool_rank());
  }

  PoolPlanOptions PoolOptions(const LayoutCase& layout) const {
    PoolPlanOptions options = plan.pool_options(runtime.context.dtype);
    for (size_t r = 0; r < options.speed.size() && r < layout.pool_speed.size(); ++r) {
      options.speed[r] = layout.pool_speed[r];
    }
    return options;
  }
  PoolSetup Pool(const LayoutCase& layout) const {
    return {mesh->pool(), plan.pool_heads(), plan.server_mode,
            static_cast<int64_t>(layout.lengths.front().size())};
  }
  int pool_rank() const {
    const MeshCoord& at = mesh->coord();
    return plan.pool().RankOf(at.pp, at.dp, at.cp);
  }

  StepOutcome Gradients(const LayoutCase& layout,
                        const std::vector<std::vector<PackedBatch>>& batches, double scale) {
    const MeshCoord& at = mesh->coord();
    double sums[2] = {0, 0};
    const TensorView loss_sum(&sums[0], DType::kF64, {1});
    const auto& mine = batches[static_cast<size_t>(at.dp)];
    if (plan.pools_attention()) {
      PoolStep step = PlanPool(layout, batches);
      EXPECT_TRUE(
          pipeline.TrainPooled(mine, scale, layout.recompute, loss_sum, Pool(layout), step).ok());
    } else {
      EXPECT_TRUE(pipeline.Train(mine, scale, layout.recompute, loss_sum).ok());
    }
    model.FinishGradients(runtime.context, TensorView(&sums[1], DType::kF64, {1}));
    EXPECT_TRUE(mesh->log().status().ok()) << mesh->log().status();
    double loss = at.tp == 0 && at.pp + 1 == mesh->shape().pp ? sums[0] : 0;
    EXPECT_TRUE(world.AllReduce(TensorView(&loss, DType::kF64, {1}), ReduceOp::kSum, "loss").ok());
    return {loss, sums[1]};
  }

  // Calls body(owned element, whole element, spec) for every element that this rank owns.
  template <typename Body>
  void ForEachElement(const ParameterLayout& whole, const Body& body) const {
    std::map<std::string, int64_t> offset_of;
    for (const ParameterSpec& spec : whole.specs()) offset_of[spec.name] = spec.offset;
    for (const ParameterSpec& spec : place.layout.specs()) {
      ForEachRun(spec, [&](int64_t local, int64_t full, int64_t count) {
        ForEachOwnedRun(place.owned, spec.offset + local, count,
                        [&](int64_t to, int64_t first, int64_t length) {
                          for (int64_t i = 0; i < length; ++i) {
                            body(to + i,
                                 offset_of.at(spec.name) + full + first - spec.offset - local + i,
                                 spec);
                          }
                        });
      });
    }
  }

  TestRuntime runtime;
  Communicator& world;
  ParallelPlan plan;
  std::unique_ptr<MeshComms> mesh;
  Model model;
  Optimizer optimizer;
  PipelineRun pipeline;
  RankPlacement place;
};

// A dedicated attention server, one of the last ranks of `comm`.
struct ServerRun {
  ServerRun(const LayoutCase& layout, Communicator& comm, DType dtype)
      : runtime(dtype),
        plan(*PlanParallel(layout.model, layout.parallel, comm.size())),
        mesh(*MeshComms::Create(comm, plan.comms())),
        pool_rank(plan.pool().num_owners() +
                  (comm.rank() - static_cast<int>(plan.mesh.num_ranks())) / plan.mesh.tp),
        clocks(MakeServerClocks(runtime.context)) {}

  // `step`: planned for pool_rank.
  void Serve(PoolStep step) {
    const PoolAccess access{&runtime.context, mesh->pool(), plan.pool_heads(), plan.server_mode,
                            clocks.data()};
    for (PoolTick& tick : step.ticks) {
      const ArenaScope scope(runtime.arena);
      Prepare(runtime.context, access.heads.of_tasks(), tick);
      ServeTick(access, tick);
    }
    EXPECT_TRUE(mesh->log().status().ok()) << mesh->log().status();
  }

  TestRuntime runtime;
  ParallelPlan plan;
  std::unique_ptr<MeshComms> mesh;
  int pool_rank;
  std::vector<ServerClock> clocks;
};

// Whether a rank has failed, so that all leave a test together. Collective.
inline bool FailedAnywhere(Communicator& comm) {
  double failed = testing::Test::HasFailure() ? 1 : 0;
  EXPECT_TRUE(
      comm.AllReduce(TensorView(&failed, DType::kF64, {1}), ReduceOp::kMax, "failures").ok());
  return failed > 0;
}

// Targets of all replicas' micro-batches.
inline int64_t CountTargets(const std::vector<std::vector<PackedBatch>>& batches) {
  int64_t count = 0;
  for (const auto& replica : batches) {
    for (const PackedBatch& batch : replica) count += batch.num_valid();
  }
  return count;
}

}  // namespace evenkeel::testing_support
