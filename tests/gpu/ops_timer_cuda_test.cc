#include "runtime/ops/elementwise.h"
#include "runtime/ops/op_timer.h"
#include "tests/gpu/ops_cuda_fixture.h"

namespace evenkeel {
namespace {

class OpTimerCudaTest : public GpuOpsTest {};

// Of many equal ops some are in spans: they take their share of the time, however soon the host has
// enqueued them, and what is between the spans does not count.
TEST_F(OpTimerCudaTest, TimesWhatTheDeviceDoesInSpans) {
  constexpr int kOps = 60, kInSpans = 20;
  OnGpu([&](const OpContext& context) {
    const ArenaScope scope(context.arena);
    const TensorView x =
        context.arena.Allocate(DType::kF32, {int64_t{1} << 26}, MemoryPurpose::kWorkspace);
    const std::unique_ptr<OpTimer> parts = MakeOpTimer(context), all = MakeOpTimer(context);
    EXPECT_EQ(parts->TakeSeconds(), 0);
    for (int round = 0; round < 2; ++round) {
      const OpTimerScope whole(*all);
      for (int i = 0; i < kOps; ++i) {
        if (i % 3 != 0) {
          SetZero(context, x);
          continue;
        }
        const OpTimerScope part(*parts);
        SetZero(context, x);
      }
    }
    const double in_spans = parts->TakeSeconds(), total = all->TakeSeconds();
    EXPECT_GT(total, 0);
    EXPECT_NEAR(in_spans / total, static_cast<double>(kInSpans) / kOps, 0.1);
    EXPECT_EQ(parts->TakeSeconds(), 0);
  });
}

}  // namespace
}  // namespace evenkeel
