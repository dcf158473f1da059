#include "runtime/metrics/trace_writer.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/status_macros.h"
#include "runtime/metrics/text_escape.h"

namespace evenkeel {
namespace {

constexpr size_t kFlushBytes = 1 << 16;

std::string MetadataEvent(const char* kind, int rank, int lane, const std::string& args) {
  return absl::StrFormat("{\"name\":\"%s\",\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"args\":{%s}}", kind,
                         rank, lane, args);
}

}  // namespace

absl::StatusOr<std::unique_ptr<TraceWriter>> TraceWriter::Create(const std::string& path, int rank,
                                                                 double origin_us) {
  EK_ASSIGN_OR_RETURN(AppendFile file, AppendFile::Open(path, AppendFile::Existing::kReplace));
  std::unique_ptr<TraceWriter> writer(new TraceWriter(std::move(file), rank, origin_us));
  // The first event has no comma before it: events are separated, not ended, by commas, so that a
  // file cut after any event lacks its closing bracket only.
  writer->buffer_ =
      "[\n" + MetadataEvent("process_name", rank, 0, absl::StrCat("\"name\":\"rank ", rank, "\""));
  writer->Add(MetadataEvent("process_sort_index", rank, 0, absl::StrCat("\"sort_index\":", rank)));
  writer->Flush();
  return writer;
}

TraceWriter::~TraceWriter() {
  buffer_ += "\n]\n";
  Flush();
}

int TraceWriter::AddLane(const std::string& name) {
  std::lock_guard<std::mutex> lock(mutex_);
  const int lane = num_lanes_++;
  Add(MetadataEvent("thread_name", rank_, lane, "\"name\":" + JsonString(name)));
  Add(MetadataEvent("thread_sort_index", rank_, lane, absl::StrCat("\"sort_index\":", lane)));
  return lane;
}

void TraceWriter::Complete(int lane, const std::string& name, double start_us, double duration_us,
                           absl::Span<const MetricValue> args) {
  std::string event =
      absl::StrFormat("{\"name\":%s,\"ph\":\"X\",\"pid\":%d,\"tid\":%d,\"ts\":%.3f,\"dur\":%.3f",
                      JsonString(name), rank_, lane, start_us - origin_us_, duration_us);
  if (!args.empty()) {
    const char* separator = ",\"args\":{";
    for (const MetricValue& arg : args) {
      absl::StrAppend(&event, separator, JsonString(arg.name), ":", JsonValue(arg));
      separator = ",";
    }
    event += "}";
  }
  event += "}";
  std::lock_guard<std::mutex> lock(mutex_);
  Add(event);
}

void TraceWriter::Flush() {
  std::lock_guard<std::mutex> lock(mutex_);
  file_.Append(buffer_);
  buffer_.clear();
}

void TraceWriter::Add(const std::string& event) {
  absl::StrAppend(&buffer_, ",\n", event);
  if (buffer_.size() >= kFlushBytes) {
    file_.Append(buffer_);
    buffer_.clear();
  }
}

}  // namespace evenkeel
