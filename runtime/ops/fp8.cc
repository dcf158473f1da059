#include "runtime/ops/fp8.h"

#include "absl/strings/str_cat.h"
#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/gpu.h"

namespace evenkeel {
namespace {

constexpr int64_t kAlignment = 16;  // of rows in memory, in bytes

void NeedsGpu() {
  EK_CHECK(false) << "products in FP8 take a GPU";
}

}  // namespace

Fp8Operand AllocateFp8(const OpContext& context, Fp8Slot slot, int64_t rows, int64_t columns,
                       Fp8Layouts layouts) {
  EK_CHECK(columns % kAlignment == 0) << columns << " columns in FP8";
  Fp8Operand operand;
  operand.slot = slot;
  const auto allocate = [&](Shape shape) {
    return context.arena.Allocate(slot.format(), shape, MemoryPurpose::kWorkspace);
  };
  const int wanted = static_cast<int>(layouts);
  if ((wanted & static_cast<int>(Fp8Layouts::kRows)) != 0) operand.rows = allocate({rows, columns});
  if ((wanted & static_cast<int>(Fp8Layouts::kColumns)) != 0) {
    operand.columns = allocate({columns, (rows + kAlignment - 1) / kAlignment * kAlignment});
  }
  return operand;
}

void CastToFp8(const OpContext& context, ConstTensorView x, const Fp8Operand& to) {
  EK_TRACE_ON_CUDA(context, CastToFp8, x, to)
  NeedsGpu();
}

void GatedUnitForwardFp8(const OpContext& context, GatedUnit unit, ConstTensorView pair,
                         const Fp8Operand& h) {
  EK_TRACE_ON_CUDA(context, GatedUnitForwardFp8, unit, pair, h)
  NeedsGpu();
}

void GatedUnitBackwardFp8(const OpContext& context, GatedUnit unit, ConstTensorView pair,
                          ConstTensorView dh, const Fp8Operand& dpair, const Fp8Operand& h) {
  EK_TRACE_ON_CUDA(context, GatedUnitBackwardFp8, unit, pair, dh, dpair, h)
  NeedsGpu();
}

void LinearForwardFp8(const OpContext& context, const Fp8Operand& x, const Fp8Operand& w,
                      ConstTensorView bias, ConstTensorView residual, TensorView y) {
  EK_TRACE_ON_CUDA(context, LinearForwardFp8, x, w, bias, residual, y)
  NeedsGpu();
}

void LinearBackwardInputFp8(const OpContext& context, const Fp8Operand& dy, const Fp8Operand& w,
                            TensorView dx) {
  EK_TRACE_ON_CUDA(context, LinearBackwardInputFp8, dy, w, dx)
  NeedsGpu();
}

void LinearBackwardWeightFp8(const OpContext& context, const Fp8Operand& dy, const Fp8Operand& x,
                             TensorView dw) {
  EK_TRACE_ON_CUDA(context, LinearBackwardWeightFp8, dy, x, dw)
  NeedsGpu();
}

absl::Status CheckFp8(const OpContext& context) {
  if (context.cuda == nullptr) {
    return absl::InvalidArgumentError("products in FP8 take a GPU (runtime.device: cuda)");
  }
  const GpuFacts facts = FactsOf(*context.cuda);
  // "9.0"; one digit each until 9.x, two from 10.0 on.
  if (facts.capability.size() >= 4 || facts.capability >= "8.9") return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(facts.name, " has compute capability ", facts.capability,
                   ", products in FP8 take 8.9 or later (Ada, Hopper): set runtime.fp8 to false"));
}

}  // namespace evenkeel
