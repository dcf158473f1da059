// What lies where in the memory of a plan: descriptors as PlanSoftmaxAttention appends them, then
// the tiles, then the tickets.
#include "attention/kernels/cuda/softmax_attention_plan.h"
#include "attention/kernels/cuda/softmax_plan_tiles.h"

namespace evenkeel {

size_t PlanMemoryBytes(const SoftmaxAttentionPlan& plan) {
  const int64_t tiles = plan.num_forward_tiles + plan.num_query_tiles + plan.num_key_tiles;
  return plan.bytes.size() + static_cast<size_t>(tiles) * sizeof(QueryTile) + sizeof(uint32_t);
}

SoftmaxPlanPieces PiecesOf(const SoftmaxAttentionPlan& plan, void* memory) {
  SoftmaxPlanPieces pieces;
  pieces.tiling = plan.tiling;
  pieces.num_forward_tiles = static_cast<int32_t>(plan.num_forward_tiles);
  pieces.num_query_tiles = static_cast<int32_t>(plan.num_query_tiles);
  pieces.num_key_tiles = static_cast<int32_t>(plan.num_key_tiles);
  pieces.num_listed = static_cast<int32_t>(plan.num_listed);
  pieces.num_stretches = static_cast<int32_t>(plan.num_stretches);
  pieces.num_runs = static_cast<int32_t>(plan.num_runs);
  auto* const listed = static_cast<PlannedTask*>(memory);
  auto* const stretches = reinterpret_cast<QueryStretch*>(listed + plan.num_listed);
  auto* const tasks = reinterpret_cast<PlannedTask*>(stretches + plan.num_stretches);
  auto* const runs = reinterpret_cast<KeyRun*>(tasks + plan.num_tasks);
  auto* const batches = reinterpret_cast<KeyBatch*>(runs + plan.num_runs);
  pieces.tasks = tasks;
  pieces.listed = listed;
  pieces.stretches = stretches;
  pieces.runs = runs;
  pieces.batches = batches;
  pieces.forward_tiles = reinterpret_cast<QueryTile*>(batches + plan.num_batches);
  pieces.query_tiles = pieces.forward_tiles + plan.num_forward_tiles;
  pieces.key_tiles = reinterpret_cast<KeyTile*>(pieces.query_tiles + plan.num_query_tiles);
  pieces.forward_tickets = reinterpret_cast<uint32_t*>(pieces.key_tiles + plan.num_key_tiles);
  return pieces;
}

SoftmaxAttentionPlanView ViewOf(const SoftmaxAttentionPlan& plan, void* memory) {
  const SoftmaxPlanPieces pieces = PiecesOf(plan, memory);
  SoftmaxAttentionPlanView view;
  view.tiling = plan.tiling;
  view.num_forward_tiles = plan.num_forward_tiles;
  view.num_query_tiles = plan.num_query_tiles;
  view.num_key_tiles = plan.num_key_tiles;
  view.num_tasks = plan.num_tasks;
  view.forward_tiles = pieces.forward_tiles;
  view.query_tiles = pieces.query_tiles;
  view.key_tiles = pieces.key_tiles;
  view.tasks = pieces.tasks;
  view.forward_tickets = pieces.forward_tickets;
  return view;
}

}  // namespace evenkeel
