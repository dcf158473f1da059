#include "parallel/batch_layout.h"

#include <algorithm>

namespace evenkeel {

std::vector<MicroBatch> MicroBatchesOfRank(int64_t step, int64_t global_batch, int64_t micro_batch,
                                           int dp_rank, int dp) {
  std::vector<MicroBatch> result;
  const int64_t turn = dp * micro_batch;  // samples dealt until it is the same replica's turn
  for (int64_t first = 0; first < global_batch; first += turn) {
    const int64_t mine = std::min(first + dp_rank * micro_batch, global_batch);
    result.push_back({step * global_batch + mine, std::min(micro_batch, global_batch - mine)});
  }
  return result;
}

}  // namespace evenkeel
