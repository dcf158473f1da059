#include "runtime/ops/fp8_scales.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "runtime/base/status_macros.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/fp8_scale.h"
#include "runtime/ops/gpu.h"

namespace evenkeel {

absl::StatusOr<Fp8Scales> Fp8Scales::Create(const OpContext& context, std::vector<DType> formats,
                                            MemoryTracker& tracker) {
  Fp8Scales scales;
  const auto n = static_cast<int64_t>(formats.size());
  scales.formats_ = std::move(formats);
  EK_ASSIGN_OR_RETURN(scales.amax_, Tensor::Create(DType::kF32, {n}, MemoryPurpose::kWorkspace,
                                                   tracker, context.device()));
  EK_ASSIGN_OR_RETURN(scales.scales_,
                      Tensor::Create(DType::kF32, {n, kPitch}, MemoryPurpose::kWorkspace, tracker,
                                     context.device()));
  SetZero(context, scales.amax_.view());
  SetZero(context, scales.scales_.view());
  return scales;
}

void Fp8Scales::BeginStep(const OpContext& context) {
  SetZero(context, amax_.view());
}

absl::StatusOr<std::vector<double>> Fp8Scales::ReadAmax(const OpContext& context) const {
  std::vector<double> amax(formats_.size());
  EK_RETURN_IF_ERROR(ReadDoubles(context, amax_.view(), absl::MakeSpan(amax)));
  return amax;
}

absl::Status Fp8Scales::Learn(const OpContext& context, absl::Span<const double> amax) {
  EK_CHECK(amax.size() == formats_.size()) << amax.size() << " values for " << formats_.size();
  if (known_.empty()) known_.assign(formats_.size(), 0.0);
  for (size_t i = 0; i < known_.size(); ++i) {
    if (std::isfinite(amax[i]) && amax[i] > 0) {
      known_[i] = std::max(amax[i], kFading * known_[i]);
    }
  }
  return Publish(context);
}

absl::Status Fp8Scales::Restore(const OpContext& context, absl::Span<const double> known) {
  EK_CHECK(known.size() == formats_.size()) << known.size() << " values for " << formats_.size();
  known_.assign(known.begin(), known.end());
  return Publish(context);
}

absl::Status Fp8Scales::Publish(const OpContext& context) {
  std::vector<float> factors(known_.size() * kPitch);
  for (size_t i = 0; i < known_.size(); ++i) {
    const float largest = formats_[i] == DType::kF8E5M2 ? kLargestE5M2 : kLargestE4M3;
    const float scale = Fp8ScaleOf(static_cast<float>(known_[i]), largest);
    factors[i * kPitch] = 1.0f / scale;
    factors[i * kPitch + 1] = scale;
  }
  is_calibrating_ = false;
  return CopyFromHost(context, ConstTensorView(factors.data(), DType::kF32, scales_.shape()),
                      scales_.view());
}

}  // namespace evenkeel
