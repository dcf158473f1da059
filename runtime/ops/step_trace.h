// What a step does when, for a timeline: named spans that nest. On the CPU they are timed by the
// clock, on a GPU by events on its compute stream, so that they show when the GPU worked and not
// when the host enqueued. On a GPU every span is an NVTX range, too, whether a trace is taken or
// not.
#pragma once

#include <memory>
#include <vector>

#include "runtime/base/trace_event.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Used by one thread.
class StepTrace {
 public:
  virtual ~StepTrace() = default;

  virtual void Begin(const char* name) = 0;
  virtual void End() = 0;

  // Returns the spans that ended since the last call, by start. On a GPU to be asked after
  // WaitForOps().
  virtual std::vector<TraceEvent> Take() = 0;
};

std::unique_ptr<StepTrace> MakeStepTrace(const OpContext& context);

// A span from its construction to its end. Costs next to nothing where no trace is taken.
class TraceScope {
 public:
  TraceScope(const OpContext& context, const char* name) : context_(context) { Open(name); }
  // "layer 3 forward"
  TraceScope(const OpContext& context, const char* noun, size_t index, const char* verb);
  ~TraceScope();
  TraceScope(const TraceScope&) = delete;
  TraceScope& operator=(const TraceScope&) = delete;

 private:
  void Open(const char* name);

  const OpContext& context_;
};

}  // namespace evenkeel
