// How the trainer evaluates on held-out documents, with attention of each replica or of a pool.
#include <algorithm>
#include <vector>

#include "launch/evaluation.h"
#include "launch/trainer.h"
#include "runtime/base/status_macros.h"

namespace evenkeel {

absl::Status Trainer::RecallEvaluation() {
  int64_t evaluated = -1;
  if (report_.has_value()) {
    EK_ASSIGN_OR_RETURN(evaluated, report_->LastEvaluatedStep());
  }
  EK_RETURN_IF_ERROR(
      comm_.AllReduce(TensorView(&evaluated, DType::kI64, {1}), ReduceOp::kMax, "evaluated step"));
  evaluated_step_ = evaluated;
  return absl::OkStatus();
}

absl::Status Trainer::EvaluateHeldOut() {
  if (evaluated_step_ == progress_.step) return absl::OkStatus();
  evaluated_step_ = progress_.step;
  if (!held_out_.has_value()) return absl::OkStatus();
  const absl::StatusOr<Evaluation> evaluation = Evaluate(
      held_out_->dataset, held_out_->samples,
      {mesh_->shape().dp, mesh_->coord().dp, CountsLosses()}, comm_,
      [this](int64_t round, absl::Span<const PackedBatch> batches,
             std::vector<TokenLosses>* losses) { return ScoreSamples(round, batches, losses); });
  EK_RETURN_IF_ERROR(SaveWithoutServers());
  EK_RETURN_IF_ERROR(evaluation.status());
  if (report_.has_value()) report_->Eval(progress_.step, *evaluation);
  return absl::OkStatus();
}

absl::Status Trainer::ScoreSamples(int64_t round, absl::Span<const PackedBatch> batches,
                                   std::vector<TokenLosses>* losses) {
  if (attention_planner_ == nullptr) return pipeline_.Losses(batches, losses);
  while (true) {
    EK_RETURN_IF_ERROR(OrderServers(PoolWork::kEvaluation, round));
    PoolStep plan = attention_planner_->TakeEvaluation(round);
    EK_RETURN_IF_ERROR(
        pipeline_.LossesPooled(batches, config_.runtime.recompute, Pool(), plan, losses));
    if (mesh_ranks_.servers == nullptr) return mesh_->log().status();
    // Speeds are learned from training alone, which has both phases.
    EK_ASSIGN_OR_RETURN(const std::optional<PoolLoads> loads, CollectServerLoads());
    if (loads.has_value()) return absl::OkStatus();
    EK_RETURN_IF_ERROR(ReplaceServers(progress_.step, "a part of the evaluation"));
  }
}

}  // namespace evenkeel
