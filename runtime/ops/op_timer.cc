#include "runtime/ops/op_timer.h"

#include <chrono>
#include <utility>

#include "runtime/ops/cuda/cuda_ops.h"

namespace evenkeel {
namespace {

class ClockTimer : public OpTimer {
 public:
  void Begin() override { begin_ = Clock::now(); }
  void End() override { seconds_ += std::chrono::duration<double>(Clock::now() - begin_).count(); }
  double TakeSeconds() override { return std::exchange(seconds_, 0.0); }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point begin_;
  double seconds_ = 0;
};

}  // namespace

std::unique_ptr<OpTimer> MakeOpTimer(const OpContext& context) {
  EK_PASS_ON_TO_CUDA(context, MakeOpTimer(context))
  return std::make_unique<ClockTimer>();
}

}  // namespace evenkeel
