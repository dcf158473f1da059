// Which samples of a global batch a data-parallel rank computes, and in which micro-batches. Pure.
#pragma once

#include <cstdint>
#include <vector>

namespace evenkeel {

// A contiguous range of global sample numbers that forms one micro-batch.
struct MicroBatch {
  int64_t first_sample = 0;
  int64_t num_samples = 0;
};

// Cuts the samples [step * global_batch, (step + 1) * global_batch) into micro-batches of
// `micro_batch` samples (the last may be smaller) and deals them to the replicas in turn:
// micro-batch j goes to replica j % dp. All replicas get equally many; those that are left over are
// empty, and come last. What is trained does not depend on dp, only who computes it.
std::vector<MicroBatch> MicroBatchesOfRank(int64_t step, int64_t global_batch, int64_t micro_batch,
                                           int dp_rank, int dp);

}  // namespace evenkeel
