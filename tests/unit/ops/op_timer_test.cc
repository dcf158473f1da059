#include "runtime/ops/op_timer.h"

#include <chrono>
#include <thread>

#include "tests/unit/ops/op_fixture.h"

namespace evenkeel {
namespace {

void Pass(int milliseconds) {
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
}

TEST(OpTimerTest, AddsUpSpansAndNothingBetweenThem) {
  OpRunner runner(1);
  const std::unique_ptr<OpTimer> timer = MakeOpTimer(runner.context());
  EXPECT_EQ(timer->TakeSeconds(), 0);
  const auto begin = std::chrono::steady_clock::now();
  for (int span = 0; span < 2; ++span) {
    const OpTimerScope scope(*timer);
    Pass(20);
  }
  Pass(200);
  const double all =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const double seconds = timer->TakeSeconds();
  EXPECT_GE(seconds, 0.04);
  EXPECT_LE(seconds, all - 0.2);
  EXPECT_EQ(timer->TakeSeconds(), 0);
}

}  // namespace
}  // namespace evenkeel
