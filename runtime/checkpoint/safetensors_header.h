// The header of a safetensors file (huggingface/safetensors, README "Format"):
//   u64 N, little endian | N bytes of JSON | the tensors' bytes
//   {"__metadata__": {key: text}, name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
// Headers come from strangers, so they are parsed here by hand: no recursion, one pass, at most
// about twice the header's own size in memory whatever it says, and every rule checked.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace evenkeel {

// Element types of the format. The order is the format's own: files are written in descending order
// of type, so that every tensor is aligned to its element size.
enum class StoredType : uint8_t {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3Fnuz,
  kF8E5M2Fnuz,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};

const char* NameOf(StoredType type);  // as the format spells it: "BF16"
int64_t BitsOf(StoredType type);      // of one element

constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;
constexpr int64_t kMaxTensorNameBytes = 1024;
constexpr int64_t kMaxMetadataEntries = 16384;

struct SafetensorsEntry {
  std::string name;
  StoredType type = StoredType::kF32;
  std::vector<int64_t> shape;  // any rank; empty for a scalar
  int64_t begin = 0;           // bytes after the header
  int64_t end = 0;
};

class SafetensorsHeader {
 public:
  // Parses the JSON `text` of a file that has `data_bytes` after it. Enforced beyond JSON: UTF-8;
  // starts with '{', nothing after the object but white space; unique names of at most
  // kMaxTensorNameBytes without control characters and "../"; known types; sizes that are plain
  // non-negative integers; data_offsets that match shape and type and that tile data_bytes without
  // hole or overlap. Errors give the byte of `text` or the tensor; the caller adds the file.
  static absl::StatusOr<SafetensorsHeader> Parse(std::string text, int64_t data_bytes);

  int64_t num_tensors() const { return static_cast<int64_t>(records_.size()); }
  SafetensorsEntry entry(int64_t index) const;  // in the order of the data
  std::optional<SafetensorsEntry> Find(const std::string& name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  friend class SafetensorsHeaderParser;

  // A tensor, by where its name and shape stand in text_: 32 bytes for at least 49 of text.
  struct Record {
    int64_t begin;
    int64_t end;
    uint32_t name_begin;
    uint32_t name_size;
    uint32_t shape_begin;  // the byte after '['
    StoredType type;
  };

  int CompareNames(const Record& record, const char* name, size_t size) const;

  std::string text_;  // names are unescaped in place
  std::vector<Record> records_;
  std::vector<uint32_t> by_name_;  // indices into records_
  std::map<std::string, std::string> metadata_;
};

}  // namespace evenkeel
