// Scalars as TensorBoard reads them. An event file is a sequence of TFRecords,
//   u64 length | u32 masked CRC-32C of the length | data | u32 masked CRC-32C of the data,
// little-endian, with mask(c) = (c >> 15 | c << 17) + 0xA282EAD8; each record's data is an Event
// message in protobuf's wire format (tensorflow/core/util/event.proto).
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "runtime/metrics/append_file.h"

namespace evenkeel {

class TensorBoardWriter {
 public:
  // Creates a new file events.out.tfevents.<unix time>.<host>.<pid>.<n> in the existing folder
  // `folder`; a resumed run has several, which TensorBoard reads in order of time.
  static absl::StatusOr<TensorBoardWriter> Open(const std::string& folder);

  // Appends a scalar with the present time. Values are stored as float32. A write error is warned
  // about once and ends nothing.
  void Scalar(const std::string& tag, int64_t step, double value);

  // Tells TensorBoard to forget what earlier files of the folder hold for steps > `restored_step`.
  // Call before the first scalar of a resumed run.
  void Resume(int64_t restored_step);

  const std::string& path() const { return path_; }

 private:
  TensorBoardWriter(std::string path, AppendFile file)
      : path_(std::move(path)), file_(std::move(file)) {}

  std::string path_;
  AppendFile file_;
};

}  // namespace evenkeel
