// How the data-parallel ranks share the state of a model (ZeRO, Rajbhandari et al., SC 2020; FSDP,
// Zhao et al., VLDB 2023), unit by unit (models/parameters.h says what a unit is; here it is a
// range of a flat buffer). Of each unit but the first, rank r of n owns the r-th part of n; the
// first, which ops read unrounded, all own. The optimizer updates what a rank owns:
//
//   stage        weights      gradients    owned state (master weights, moments)
//   kNone        whole        whole        whole: every rank updates everything
//   kOptimizer   whole        whole        a part
//   kGradients   whole        a part       a part
//   kParameters  a part       a part       a part
//
// Where weights or gradients are a part, a unit's whole is there only from Acquire to Release.
//
// A step: weights of each unit are acquired and released as the layers need them, gradients
// acquired, added to and released; after the last micro-batch FinishGradients(), an update of
// master() from gradients(), PublishWeights(). All ranks make the same calls in the same order.
// Errors of communication go to the axis's log.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/axis_comm.h"
#include "parallel/gradient_reducer.h"
#include "parallel/sharding.h"
#include "runtime/base/row_range.h"
#include "runtime/ops/op_context.h"
#include "runtime/tensor/tensor.h"

namespace evenkeel {

struct ParameterStoreOptions {
  ShardingStage stage = ShardingStage::kNone;
  AxisComm* data = nullptr;  // the ranks that hold the same units; null: this rank alone
  bool with_gradients = true;
  int64_t bucket_elements = int64_t{1} << 20;  // of gradients reduced at a time (kNone)
};

class ParameterStore {
 public:
  ParameterStore() = default;  // of nothing
  // `unit_begin` as above. Everything begins as zero. The tracker and the axis must outlive it.
  static absl::StatusOr<ParameterStore> Create(const OpContext& context,
                                               std::vector<int64_t> unit_begin,
                                               const ParameterStoreOptions& options,
                                               MemoryTracker& tracker);

  ShardingStage stage() const { return options_.stage; }
  bool is_sharded() const { return options_.stage != ShardingStage::kNone; }
  AxisComm* data() const { return options_.data; }

  // What this rank owns (OwnedRanges).
  const std::vector<RowRange>& owned() const { return owned_; }
  int64_t num_owned() const { return owned_.back().to + owned_.back().count; }

  // Owned buffers [num_owned()]: master weights and gradients of the context's wide dtype, and the
  // weights rounded to the context's dtype (empty where that is the wide one), which the optimizer
  // writes along with the master.
  Tensor& master() { return master_; }
  const Tensor& master() const { return master_; }
  Tensor& gradients() { return is_sharded() ? owned_gradients_ : gradients_; }
  const Tensor& gradients() const { return is_sharded() ? owned_gradients_ : gradients_; }
  TensorView rounded() { return rounded_.view(); }

  // Makes what was written to master() what ops read: rounds it, unless the optimizer has
  // (`is_rounded`), and begins to gather it.
  void PublishWeights(const OpContext& context, bool is_rounded);

  // The unit's weights, whole, in the dtype that ops compute in; the exact unit's are the master's.
  // Valid until released.
  ConstTensorView AcquireWeights(const OpContext& context, int unit);
  void ReleaseWeights(int unit);
  // Begins to gather a unit that will be acquired soon.
  void PrefetchWeights(const OpContext& context, int unit);
  ConstTensorView exact() const { return master_.view().Rows(0, unit_begin_[1]); }

  // The unit's gradients to add to.
  TensorView AcquireGradients(const OpContext& context, int unit);
  // `is_final`: no more of this step follow for the unit; units become final in descending order,
  // each on all ranks, whether it was acquired or not.
  void ReleaseGradients(int unit, bool is_final);
  TensorView exact_gradients() { return gradients().view().Rows(0, unit_begin_[1]); }
  // Waits until gradients() hold the sums over the ranks.
  void FinishGradients(const OpContext& context);
  // Clears what the optimizer does not.
  void ClearGradients(const OpContext& context);

 private:
  // Memory for one unit's whole, at times.
  struct Slot {
    Tensor whole;
    int unit = -1;
    int users = 0;
    bool is_expected = false;  // prefetched, not acquired yet
    Work gather;
  };
  struct GradientSlot {
    Tensor whole;
    Tensor part;  // what the ranks' sum of this rank's part lands in
    int unit = -1;
    bool is_reducing = false;
    Work reduction;
  };

  int64_t UnitSize(int unit) const {
    return unit_begin_[static_cast<size_t>(unit) + 1] - unit_begin_[static_cast<size_t>(unit)];
  }
  RowRange OwnedOf(int unit) const { return owned_[static_cast<size_t>(unit)]; }
  std::vector<int64_t> EqualRows(int unit) const;
  ConstTensorView GatherSource(int unit) const;
  Slot& FindSlot(const OpContext& context, int unit);
  GradientSlot& FreeGradientSlot(const OpContext& context, int unit);
  void FinishReduction(const OpContext& context, GradientSlot& slot);

  std::vector<int64_t> unit_begin_;
  ParameterStoreOptions options_;
  MemoryTracker* tracker_ = nullptr;
  std::vector<RowRange> owned_;
  Tensor master_, rounded_;
  Tensor weights_;    // [N], kOptimizer and kGradients
  Tensor gradients_;  // [N], kNone and kOptimizer
  Tensor owned_gradients_;
  std::vector<Work> gathers_;                 // of each unit, into weights_
  std::vector<std::unique_ptr<Slot>> slots_;  // kParameters
  std::vector<std::unique_ptr<GradientSlot>> gradient_slots_;
  std::vector<std::pair<int, Work>> reductions_;  // kOptimizer
  std::unique_ptr<GradientReducer> reducer_;      // kNone, several ranks
};

}  // namespace evenkeel
