// Reading and writing safetensors files, the format that weights are exchanged in with Hugging Face
// and that our checkpoints are made of.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/checkpoint/file_io.h"
#include "runtime/checkpoint/safetensors_header.h"
#include "runtime/tensor/tensor_view.h"

namespace evenkeel {

// An open file. Reading is const and safe from several threads; it goes through pread, so that a
// file truncated meanwhile is an error and not a signal.
class SafetensorsReader {
 public:
  // Opens and checks `path`; every error names it. No tensor's bytes are read.
  static absl::StatusOr<SafetensorsReader> Open(const std::string& path);

  // The same for the file `name` of an open folder, under OpenFileIn's rules.
  static absl::StatusOr<SafetensorsReader> OpenIn(const FileDescriptor& folder,
                                                  const std::string& folder_path,
                                                  const std::string& name);

  const std::string& path() const { return path_; }
  int64_t num_tensors() const { return header_.num_tensors(); }
  SafetensorsEntry entry(int64_t index) const { return header_.entry(index); }
  std::optional<SafetensorsEntry> Find(const std::string& name) const { return header_.Find(name); }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata(); }

  // Reads a tensor into `dst`, which must have its exact shape (rows may be strided). F32 and F64
  // destinations take F16, BF16, F32 and F64; any other destination takes its own type only.
  absl::Status ReadTensor(const std::string& name, TensorView dst) const;

 private:
  SafetensorsReader(std::string path, FileDescriptor file, int64_t data_begin,
                    SafetensorsHeader header);
  static absl::StatusOr<SafetensorsReader> Parse(std::string path, FileDescriptor file);

  std::string path_;
  FileDescriptor file_;
  int64_t data_begin_;
  SafetensorsHeader header_;
};

struct SafetensorsTensor {
  std::string name;
  ConstTensorView tensor;  // any shape; rows may be strided
  StoredType type;         // F16, BF16, F32 or F64 from F32 and F64; else the tensor's own
};

struct SafetensorsWriteOptions {
  std::map<std::string, std::string> metadata = {{"format", "pt"}};  // what Hugging Face looks for
  bool sync = false;             // on disk when the call returns
  const IoHook* hook = nullptr;  // may be null
};

// Writes `path` whole or not at all, laid out as Hugging Face's own writer does (descending type,
// then name). Returns its size and hash. Names must be unique and pass SafetensorsHeader's rules.
absl::StatusOr<FileDigest> WriteSafetensors(const std::string& path,
                                            absl::Span<const SafetensorsTensor> tensors,
                                            const SafetensorsWriteOptions& options = {});

// The stored type that holds `dtype` exactly.
StoredType StoredTypeOf(DType dtype);

}  // namespace evenkeel
