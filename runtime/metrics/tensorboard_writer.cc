#include "runtime/metrics/tensorboard_writer.h"

#include <unistd.h>

#include <bit>
#include <chrono>
#include <ctime>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/status_macros.h"
#include "runtime/metrics/crc32c.h"
#include "runtime/metrics/text_escape.h"

namespace evenkeel {
namespace {

// Field numbers of event.proto and summary.proto.
constexpr uint64_t kEventWallTime = 1, kEventStep = 2, kEventFileVersion = 3, kEventSummary = 5,
                   kEventSessionLog = 7;
constexpr uint64_t kSummaryValue = 1, kValueTag = 1, kValueSimpleValue = 2;
constexpr uint64_t kSessionLogStatus = 1, kSessionStart = 1;

enum WireType : uint64_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

template <typename T>
void AppendLittleEndian(std::string& out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) out += static_cast<char>(value >> (8 * i) & 0xFF);
}

void AppendVarint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7F) | 0x80);
  out += static_cast<char>(value);
}

void AppendKey(std::string& out, uint64_t field, WireType type) {
  AppendVarint(out, field << 3 | type);
}

void AppendBytes(std::string& out, uint64_t field, const std::string& bytes) {
  AppendKey(out, field, kBytes);
  AppendVarint(out, bytes.size());
  out += bytes;
}

// Starts an Event message with the present time.
std::string NewEvent() {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  std::string event;
  AppendKey(event, kEventWallTime, kFixed64);
  AppendLittleEndian(event, std::bit_cast<uint64_t>(now.count()));
  return event;
}

void AppendStep(std::string& event, int64_t step) {
  AppendKey(event, kEventStep, kVarint);
  AppendVarint(event, static_cast<uint64_t>(step));
}

uint32_t MaskedCrc(const std::string& bytes) {
  return std::rotr(Crc32c(bytes), 15) + 0xA282EAD8u;
}

std::string Record(const std::string& data) {
  std::string record;
  AppendLittleEndian(record, uint64_t{data.size()});
  AppendLittleEndian(record, MaskedCrc(record));
  record += data;
  AppendLittleEndian(record, MaskedCrc(data));
  return record;
}

}  // namespace

absl::StatusOr<TensorBoardWriter> TensorBoardWriter::Open(const std::string& folder) {
  char host[256] = "localhost";
  (void)gethostname(host, sizeof(host) - 1);
  const std::string stem = absl::StrFormat("%s/events.out.tfevents.%010d.%s.%d.", folder,
                                           std::time(nullptr), host, getpid());
  for (int n = 0;; ++n) {
    const std::string path = absl::StrCat(stem, n);
    auto file = AppendFile::Open(path, AppendFile::Existing::kRefuse);
    if (absl::IsAlreadyExists(file.status())) continue;
    EK_RETURN_IF_ERROR(file.status());
    std::string event = NewEvent();
    AppendBytes(event, kEventFileVersion, "brain.Event:2");
    file->Append(Record(event));
    return TensorBoardWriter(path, *std::move(file));
  }
}

void TensorBoardWriter::Scalar(const std::string& tag, int64_t step, double value) {
  std::string scalar;
  AppendBytes(scalar, kValueTag, ValidUtf8(tag));
  AppendKey(scalar, kValueSimpleValue, kFixed32);
  AppendLittleEndian(scalar, std::bit_cast<uint32_t>(static_cast<float>(value)));
  std::string summary;
  AppendBytes(summary, kSummaryValue, scalar);
  std::string event = NewEvent();
  AppendStep(event, step);
  AppendBytes(event, kEventSummary, summary);
  file_.Append(Record(event));
}

void TensorBoardWriter::Resume(int64_t restored_step) {
  // A session start at step s makes TensorBoard drop what it holds for steps >= s.
  std::string session;
  AppendKey(session, kSessionLogStatus, kVarint);
  AppendVarint(session, kSessionStart);
  std::string event = NewEvent();
  AppendStep(event, restored_step + 1);
  AppendBytes(event, kEventSessionLog, session);
  file_.Append(Record(event));
}

}  // namespace evenkeel
