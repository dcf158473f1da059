// One call under way on the GPU. Internal to runtime/comm.
#pragma once

#include <memory>

#include "runtime/comm/communicator.h"
#include "runtime/comm/cuda/nccl_call_events.h"
#include "runtime/comm/cuda/nccl_context.h"

namespace evenkeel {

class NcclWork : public Work::Pending {
 public:
  NcclWork(NcclContext* context, std::shared_ptr<const NcclCallEvents> events)
      : context_(context), events_(std::move(events)) {}
  // Makes the compute stream wait, if nobody has.
  ~NcclWork() override;

  bool Test() override;
  // Makes the compute stream wait, the first time. Returns what is known of failures by now.
  absl::Status Wait() override;

 private:
  NcclContext* context_;
  std::shared_ptr<const NcclCallEvents> events_;
  bool has_waited_ = false;
};

}  // namespace evenkeel
