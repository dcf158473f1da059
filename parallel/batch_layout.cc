#include "parallel/batch_layout.h"

#include <algorithm>

namespace evenkeel {

std::vector<MicroBatch> MicroBatchesOfRank(int64_t step, int64_t global_batch, int64_t micro_batch,
                                           int dp_rank, int dp) {
  std::vector<MicroBatch> result;
  for (int64_t first = dp_rank * micro_batch; first < global_batch; first += dp * micro_batch) {
    result.push_back({step * global_batch + first, std::min(micro_batch, global_batch - first)});
  }
  return result;
}

}  // namespace evenkeel
