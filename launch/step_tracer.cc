#include "launch/step_tracer.h"

#include "absl/strings/str_cat.h"
#include "launch/output_file.h"
#include "runtime/base/status_macros.h"

namespace evenkeel {

absl::StatusOr<StepTracer> StepTracer::Create(const RunConfig& config, Communicator& comm,
                                              GpuComm* gpu_comm) {
  StepTracer tracer;
  tracer.gpu_comm_ = gpu_comm;
  tracer.window_ = config.trace;
  if (config.trace.steps == 0) return tracer;
  const std::string folder = config.folder + "/trace";
  EK_RETURN_IF_ERROR(MakeFolders(folder));
  tracer.rank_ = comm.rank();
  tracer.path_ = absl::StrCat(folder, "/rank-", comm.rank(), ".json");
  // Ranks leave a barrier together: their clocks line up there.
  EK_RETURN_IF_ERROR(comm.Barrier("trace"));
  tracer.origin_us_ = TraceWriter::NowUs();
  return tracer;
}

absl::Status StepTracer::BeginStep(int64_t step, OpContext& context) {
  const bool inside = step >= window_.first_step && step < window_.first_step + window_.steps;
  if (inside && writer_ == nullptr) {
    EK_ASSIGN_OR_RETURN(writer_, TraceWriter::Create(path_, rank_, origin_us_));
    host_lane_ = writer_->AddLane("host");
    compute_lane_ = writer_->AddLane(context.cuda == nullptr ? "compute" : "compute stream");
    trace_ = MakeStepTrace(context);
    if (gpu_comm_ != nullptr) {
      communication_lane_ = writer_->AddLane("communication stream");
      EK_RETURN_IF_ERROR(gpu_comm_->StartTrace());
    }
  } else if (!inside && writer_ != nullptr) {
    writer_ = nullptr;
    trace_ = nullptr;
    if (gpu_comm_ != nullptr) gpu_comm_->StopTrace();
  }
  context.trace = trace_.get();
  step_begin_us_ = TraceWriter::NowUs();
  return absl::OkStatus();
}

void StepTracer::EndStep(int64_t step, OpContext& context) {
  context.trace = nullptr;
  if (writer_ == nullptr) return;
  writer_->Complete(host_lane_, absl::StrCat("step ", step), step_begin_us_,
                    TraceWriter::NowUs() - step_begin_us_);
  for (const TraceEvent& event : trace_->Take()) {
    writer_->Complete(compute_lane_, event.name, event.start_us, event.duration_us);
  }
  if (gpu_comm_ != nullptr) {
    for (const TraceEvent& event : gpu_comm_->TakeTrace()) {
      writer_->Complete(communication_lane_, event.name, event.start_us, event.duration_us);
    }
  }
  writer_->Flush();
}

}  // namespace evenkeel
