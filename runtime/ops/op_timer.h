// How long ops take: by the clock on the CPU, where a call returns when it is done; on a GPU by
// events on its compute stream, between which only what was enqueued in a span runs.
#pragma once

#include <memory>

#include "runtime/ops/op_context.h"

namespace evenkeel {

// Used by one thread. Spans do not nest.
class OpTimer {
 public:
  virtual ~OpTimer() = default;

  virtual void Begin() = 0;
  virtual void End() = 0;

  // Returns the sum over the spans since the last call, all of which have ended. On a GPU it waits
  // until they have there.
  virtual double TakeSeconds() = 0;
};

std::unique_ptr<OpTimer> MakeOpTimer(const OpContext& context);

class OpTimerScope {
 public:
  explicit OpTimerScope(OpTimer& timer) : timer_(timer) { timer_.Begin(); }
  ~OpTimerScope() { timer_.End(); }
  OpTimerScope(const OpTimerScope&) = delete;
  OpTimerScope& operator=(const OpTimerScope&) = delete;

 private:
  OpTimer& timer_;
};

}  // namespace evenkeel
