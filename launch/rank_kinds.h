// The kinds of ranks of a run: ranks that hold the same layers and equally much of each need the
// same memory and send the same, up to the odd token. What a run asks of its ranks is worked out
// kind by kind, so that it takes no longer for thousands of replicas.
//
// What data may look like is not known beforehand: samples are taken as one document each.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/run_config.h"
#include "scheduler/comm_volume.h"
#include "scheduler/memory_plan.h"

namespace evenkeel {

struct RankKind {
  bool is_dedicated = false;  // an attention server beside the mesh, of any tensor-parallel place
  int stage = 0;              // on the pp axis
  int tp_begin = 0;           // tensor-parallel ranks [tp_begin, tp_end)
  int tp_end = 0;
  int64_t num_ranks = 0;
  ModelShape shape;  // what each holds; of a dedicated server, only what it serves (pooled)
};

// By stage and place on the tp axis, dedicated servers last.
std::vector<RankKind> KindsOfRanks(const ParallelPlan& plan);

// "stage 0", "stage 0, tp 2-3", "server"
std::string NameOf(const ParallelPlan& plan, const RankKind& kind);

// Elements of its part that a rank owns (parallel/sharding.h).
int64_t OwnedParameters(const ParallelPlan& plan, const RankKind& kind);

// Micro-batches of `micro_batch_size` samples that each replica makes in a step.
int64_t MicroBatchesPerReplica(const RunConfig& config, const ParallelPlan& plan,
                               int64_t micro_batch_size);

// Of the rank of the kind that needs most.
MemoryPlan MemoryOf(const RunConfig& config, const ParallelPlan& plan, const RankKind& kind,
                    int64_t micro_batch_size, Recompute recompute);

// Of the rank of the kind that sends most, in the replica that has no short micro-batch before the
// others. Without what travels to attention servers and back, which depends on the documents.
CommVolume VolumeOf(const RunConfig& config, const ParallelPlan& plan, const RankKind& kind);

}  // namespace evenkeel
