// Scales of tensors that enter products in FP8, one a tensor, kept on the GPU: "delayed scaling"
// (Micikevicius et al., FP8 Formats for Deep Learning, 2022; NVIDIA's Transformer Engine). A step
// uses scales that follow from the largest values of the steps before it, so a tensor is scaled as
// it is made, and notes its own largest value meanwhile. What lies above the range is cut off at
// its end; a scale is a power of two with room for up to twice the largest value known.
//
// While no step has been seen, tensors are measured first and scaled by what was found: one more
// pass over each (is_calibrating).
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/ops/op_context.h"
#include "runtime/tensor/memory_tracker.h"
#include "runtime/tensor/tensor.h"

namespace evenkeel {

class Fp8Scales {
 public:
  // Of tensors in the formats named (kF8E4M3 or kF8E5M2), on the context's GPU.
  static absl::StatusOr<Fp8Scales> Create(const OpContext& context, std::vector<DType> formats,
                                          MemoryTracker& tracker);

  int64_t size() const { return static_cast<int64_t>(formats_.size()); }
  DType format(int64_t i) const { return formats_[static_cast<size_t>(i)]; }
  bool is_calibrating() const { return is_calibrating_; }

  // Where kernels find tensor i's numbers, on the GPU: the largest value of this step, the factor
  // to FP8, and the factor back.
  float* amax(int64_t i) { return amax_.view().as<float>() + i; }
  float* inverse(int64_t i) { return scales_.view().as<float>() + kPitch * i; }
  float* scale(int64_t i) { return inverse(i) + 1; }

  // Forgets values noted since the last step, as by an evaluation. Enqueues.
  void BeginStep(const OpContext& context);
  // The largest values noted in this step [size]; 0 of a tensor that did not occur. Waits for the
  // GPU, and fails with what went wrong there.
  absl::StatusOr<std::vector<double>> ReadAmax(const OpContext& context) const;
  // Takes the largest values of a step, over all ranks that should scale alike, into account. What
  // was known before fades by kFading a step; values of 0 or not finite are passed over.
  absl::Status Learn(const OpContext& context, absl::Span<const double> amax);

  // The largest values known, faded: all the state there is. Empty while calibrating.
  absl::Span<const double> known() const { return known_; }
  // Goes on from what another Fp8Scales knew. `known` [size].
  absl::Status Restore(const OpContext& context, absl::Span<const double> known);

  // A peak is out of mind, as a factor of two goes, after 14 steps.
  static constexpr double kFading = 0.95;

 private:
  // cuBLASLt refuses factors that are not aligned to 16 bytes.
  static constexpr int64_t kPitch = 4;

  absl::Status Publish(const OpContext& context);

  std::vector<DType> formats_;
  std::vector<double> known_;
  Tensor amax_;    // [n]
  Tensor scales_;  // [n, kPitch]: the inverse, the factor, nothing
  bool is_calibrating_ = true;
};

// One tensor's place among the scales; null: not in FP8.
struct Fp8Slot {
  Fp8Scales* scales = nullptr;
  int64_t index = 0;

  explicit operator bool() const { return scales != nullptr; }
  DType format() const { return scales->format(index); }
};

}  // namespace evenkeel
