// What the main kernels of the softmax backward pass share: the order in which a block meets the
// queries that see its keys, and the turns in which blocks add to a query tile's gradient.
#pragma once

#include <cstdint>

#include "attention/kernels/cuda/softmax_attention_plan.h"
#include "attention/kernels/cuda/tile_ticket.cuh"

namespace evenkeel {

// The walk over everything that sees keys of one key tile: tasks in the plan's order, their query
// tiles from the last to the first, the query heads of the group. A later key tile is seen by fewer
// query tiles; with the heads innermost it leaves a task early and until then stays one step behind
// the tile before it, where with the heads outermost it would wait at every head. The same in all
// threads.
struct Walk {
  PlannedTask task;
  int task_index;
  int group_head;
  int tile;        // query tile within the task
  int first_tile;  // of the task, that sees a key of this key tile
  bool valid;
};

template <typename Shape>
__device__ __forceinline__ int FirstTile(const PlannedTask& task, const KeyTile& keys) {
  const int begin = max(keys.kv_begin - task.kv_begin, 0);
  return max(begin + 1 - task.visible, 0) / Shape::kQueries;
}

// Moves to the first task at or after `index` that has keys in the tile.
template <typename Shape>
__device__ __forceinline__ void SeekTask(Walk& walk, const PlannedTask* tasks, const KeyTile& keys,
                                         int index, int lane) {
  walk.valid = false;
  for (; index < keys.task_end; index += 32) {
    bool meets = false;
    if (index + lane < keys.task_end) {
      const PlannedTask& task = tasks[index + lane];
      meets = task.kv_begin < keys.kv_begin + keys.kv_rows &&
              task.kv_begin + task.kv_len > keys.kv_begin;
    }
    const unsigned found = __ballot_sync(0xffffffffu, meets);
    if (found == 0) continue;
    walk.task_index = index + __ffs(found) - 1;
    walk.task = tasks[walk.task_index];
    walk.group_head = 0;
    walk.tile = (walk.task.q_len - 1) / Shape::kQueries;
    walk.first_tile = FirstTile<Shape>(walk.task, keys);
    walk.valid = true;
    return;
  }
}

template <typename Shape>
__device__ __forceinline__ void Advance(Walk& walk, const PlannedTask* tasks, const KeyTile& keys,
                                        int group, int lane) {
  if (++walk.group_head < group) return;
  walk.group_head = 0;
  if (--walk.tile >= walk.first_tile) return;
  SeekTask<Shape>(walk, tasks, keys, walk.task_index + 1, lane);
}

// Counters are read relaxed: what follows are additions in the L2 cache, where the earlier
// contributions were when their block counted them, and they are issued only once the value is
// known.
__device__ __forceinline__ uint32_t ReadCounter(const uint32_t* counter) {
  uint32_t seen;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
  return seen;
}

// All contributions of the block have been ordered before by a barrier.
__device__ __forceinline__ void CountContribution(uint32_t* counter) {
  __threadfence();
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

}  // namespace evenkeel
