#include "runtime/checkpoint/safetensors_file.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/checkpoint/float_convert.h"

namespace evenkeel {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr int64_t kBufferBytes = int64_t{1} << 20;

absl::Status FileError(const std::string& path, const std::string& what) {
  return CheckpointError(absl::StatusCode::kInvalidArgument, absl::StrCat(path, ": ", what));
}

// Walks a view in row-major order in the longest dense pieces.
class DensePieces {
 public:
  struct Piece {
    int64_t offset;  // elements from the view's start
    int64_t count;
  };

  explicit DensePieces(const ConstTensorView& view) : view_(view) {
    outer_rank_ = view.rank();
    while (outer_rank_ > 0 &&
           (view.dim(outer_rank_ - 1) == 1 || view.stride(outer_rank_ - 1) == inner_)) {
      inner_ *= view.dim(--outer_rank_);
    }
  }

  // Returns the next at most `max` elements that are adjacent; the caller counts up to the end.
  Piece Next(int64_t max) {
    int64_t offset = position_;
    for (int i = 0; i < outer_rank_; ++i)
      offset += index_[static_cast<size_t>(i)] * view_.stride(i);
    const int64_t count = std::min(max, inner_ - position_);
    position_ += count;
    if (position_ == inner_) {
      position_ = 0;
      for (int i = outer_rank_ - 1; i >= 0; --i) {
        if (++index_[static_cast<size_t>(i)] < view_.dim(i)) break;
        index_[static_cast<size_t>(i)] = 0;
      }
    }
    return {offset, count};
  }

 private:
  ConstTensorView view_;
  int outer_rank_ = 0;
  int64_t inner_ = 1;
  int64_t position_ = 0;  // within the inner block
  std::array<int64_t, Shape::kMaxRank> index_ = {};
};

template <typename Stored, typename Value, typename Convert>
void ConvertEach(const void* from, void* to, int64_t count, Convert convert) {
  const char* source = static_cast<const char*>(from);
  char* target = static_cast<char*>(to);
  for (int64_t i = 0; i < count; ++i) {
    Stored stored;
    std::memcpy(&stored, source + i * static_cast<int64_t>(sizeof(Stored)), sizeof(Stored));
    const Value value = convert(stored);
    std::memcpy(target + i * static_cast<int64_t>(sizeof(Value)), &value, sizeof(Value));
  }
}

// Values of a file to elements of T.
template <typename T>
void DecodeFloats(StoredType type, const void* from, void* to, int64_t count) {
  if (type == StoredType::kF16) {
    ConvertEach<uint16_t, T>(from, to, count, [](uint16_t x) { return T{FloatFromF16(x)}; });
  } else if (type == StoredType::kBF16) {
    ConvertEach<uint16_t, T>(from, to, count, [](uint16_t x) { return T{FloatFromBF16(x)}; });
  } else if (type == StoredType::kF32) {
    ConvertEach<float, T>(from, to, count, [](float x) { return T{x}; });
  } else {
    ConvertEach<double, T>(from, to, count, [](double x) { return static_cast<T>(x); });
  }
}

// Elements of T to values of a file. 16-bit values of a double are rounded to float first, as
// PyTorch does.
template <typename T>
void EncodeFloats(StoredType type, const void* from, void* to, int64_t count) {
  if (type == StoredType::kF16) {
    ConvertEach<T, uint16_t>(from, to, count,
                             [](T x) { return F16FromFloat(static_cast<float>(x)); });
  } else if (type == StoredType::kBF16) {
    ConvertEach<T, uint16_t>(from, to, count,
                             [](T x) { return BF16FromFloat(static_cast<float>(x)); });
  } else if (type == StoredType::kF32) {
    ConvertEach<T, float>(from, to, count, [](T x) { return static_cast<float>(x); });
  } else {
    ConvertEach<T, double>(from, to, count, [](T x) { return double{x}; });
  }
}

bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF64;
}

bool IsConvertibleFloat(StoredType type) {
  return type == StoredType::kF16 || type == StoredType::kBF16 || type == StoredType::kF32 ||
         type == StoredType::kF64;
}

bool IsConvertible(StoredType type, DType dtype) {
  return type == StoredTypeOf(dtype) || (IsFloat(dtype) && IsConvertibleFloat(type));
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (char c : text) {
    if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppendFormat(&quoted, "\\u%04x", static_cast<int>(c));
      continue;
    }
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + "\"";
}

// The header for `order`, padded with spaces so that the data begins at a multiple of 8.
std::string HeaderText(const std::vector<const SafetensorsTensor*>& order,
                       const std::map<std::string, std::string>& metadata, int64_t& data_bytes) {
  std::vector<std::string> members;
  if (!metadata.empty()) {
    members.push_back(absl::StrCat("\"__metadata__\":{",
                                   absl::StrJoin(metadata, ",",
                                                 [](std::string* out, const auto& item) {
                                                   absl::StrAppend(out, Quoted(item.first), ":",
                                                                   Quoted(item.second));
                                                 }),
                                   "}"));
  }
  data_bytes = 0;
  for (const SafetensorsTensor* tensor : order) {
    const Shape& shape = tensor->tensor.shape;
    const int64_t begin = data_bytes;
    data_bytes += shape.num_elements() * BitsOf(tensor->type) / 8;
    members.push_back(
        absl::StrCat(Quoted(tensor->name), ":{\"dtype\":\"", NameOf(tensor->type), "\",\"shape\":[",
                     absl::StrJoin(shape.dims.begin(), shape.dims.begin() + shape.rank, ","),
                     "],\"data_offsets\":[", begin, ",", data_bytes, "]}"));
  }
  std::string text = absl::StrCat("{", absl::StrJoin(members, ","), "}");
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

absl::Status WriteTensor(const SafetensorsTensor& item, FileWriter& writer) {
  const ConstTensorView& tensor = item.tensor;
  const int64_t in_bytes = SizeOf(tensor.dtype), out_bytes = BitsOf(item.type) / 8;
  const bool same = item.type == StoredTypeOf(tensor.dtype);
  const char* data = static_cast<const char*>(tensor.data);
  const int64_t total = tensor.num_elements();
  if (same && tensor.is_dense()) return writer.Write(data, total * in_bytes);
  const int64_t capacity = std::min(total, kBufferBytes / out_bytes);
  std::vector<char> buffer(static_cast<size_t>(capacity * out_bytes));
  DensePieces pieces(tensor);
  for (int64_t done = 0; done < total;) {
    const int64_t chunk = std::min(capacity, total - done);
    for (int64_t filled = 0; filled < chunk;) {
      const DensePieces::Piece piece = pieces.Next(chunk - filled);
      const char* from = data + piece.offset * in_bytes;
      char* to = buffer.data() + filled * out_bytes;
      if (same) {
        std::memcpy(to, from, static_cast<size_t>(piece.count * in_bytes));
      } else {
        DispatchFloat(tensor.dtype,
                      [&]<typename T>() { EncodeFloats<T>(item.type, from, to, piece.count); });
      }
      filled += piece.count;
    }
    EK_RETURN_IF_ERROR(writer.Write(buffer.data(), chunk * out_bytes));
    done += chunk;
  }
  return absl::OkStatus();
}

}  // namespace

StoredType StoredTypeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return StoredType::kF32;
    case DType::kF64:
      return StoredType::kF64;
    case DType::kBF16:
      return StoredType::kBF16;
    case DType::kI32:
      return StoredType::kI32;
    case DType::kI64:
      return StoredType::kI64;
    case DType::kF8E4M3:
    case DType::kF8E5M2:
      break;
  }
  EK_CHECK(false) << "operands in FP8 are not stored";
  return StoredType::kF32;
}

SafetensorsReader::SafetensorsReader(std::string path, FileDescriptor file, int64_t data_begin,
                                     SafetensorsHeader header)
    : path_(std::move(path)),
      file_(std::move(file)),
      data_begin_(data_begin),
      header_(std::move(header)) {}

absl::StatusOr<SafetensorsReader> SafetensorsReader::Open(const std::string& path) {
  EK_ASSIGN_OR_RETURN(FileDescriptor file, OpenFile(path));
  return Parse(path, std::move(file));
}

absl::StatusOr<SafetensorsReader> SafetensorsReader::OpenIn(const FileDescriptor& folder,
                                                            const std::string& folder_path,
                                                            const std::string& name) {
  EK_ASSIGN_OR_RETURN(FileDescriptor file, OpenFileIn(folder, folder_path, name));
  return Parse(absl::StrCat(folder_path, "/", name), std::move(file));
}

absl::StatusOr<SafetensorsReader> SafetensorsReader::Parse(std::string path, FileDescriptor file) {
  EK_ASSIGN_OR_RETURN(const int64_t file_bytes, SizeOfFile(file, path));
  uint64_t header_bytes = 0;
  constexpr int64_t kPrefix = sizeof(header_bytes);
  if (file_bytes < kPrefix) {
    return FileError(path, absl::StrCat("a file of ", file_bytes, " bytes is no safetensors file"));
  }
  EK_RETURN_IF_ERROR(ReadAt(file, path, 0, &header_bytes, kPrefix));
  if (header_bytes > static_cast<uint64_t>(kMaxSafetensorsHeaderBytes)) {
    return FileError(path, absl::StrCat("claims a header of ", header_bytes, " bytes; at most ",
                                        kMaxSafetensorsHeaderBytes, " are allowed"));
  }
  const int64_t data_begin = kPrefix + static_cast<int64_t>(header_bytes);
  if (data_begin > file_bytes) {
    return FileError(path, absl::StrCat("claims a header of ", header_bytes,
                                        " bytes, but the file has only ", file_bytes, " bytes"));
  }
  std::string text(header_bytes, '\0');
  EK_RETURN_IF_ERROR(ReadAt(file, path, kPrefix, text.data(), static_cast<int64_t>(header_bytes)));
  absl::StatusOr<SafetensorsHeader> header =
      SafetensorsHeader::Parse(std::move(text), file_bytes - data_begin);
  if (!header.ok()) return FileError(path, std::string(header.status().message()));
  return SafetensorsReader(std::move(path), std::move(file), data_begin, *std::move(header));
}

absl::Status SafetensorsReader::ReadTensor(const std::string& name, TensorView dst) const {
  EK_CHECK(dst.device == Device::kCpu);
  const std::optional<SafetensorsEntry> entry = Find(name);
  if (!entry.has_value()) {
    return CheckpointError(absl::StatusCode::kNotFound,
                           absl::StrCat(path_, " has no tensor \"", name, "\""));
  }
  const std::vector<int64_t> want(dst.shape.dims.begin(), dst.shape.dims.begin() + dst.rank());
  if (entry->shape != want) {
    return FileError(
        path_, absl::StrCat("tensor \"", name, "\" has shape ", ShapeText(entry->shape), ", but ",
                            ShapeText(want), " is needed"));
  }
  if (!IsConvertible(entry->type, dst.dtype)) {
    return FileError(path_,
                     absl::StrCat("tensor \"", name, "\" is ", NameOf(entry->type),
                                  ", which cannot become ", NameOf(StoredTypeOf(dst.dtype))));
  }
  const int64_t total = dst.num_elements();
  const int64_t offset = data_begin_ + entry->begin;
  const int64_t in_bytes = BitsOf(entry->type) / 8, out_bytes = SizeOf(dst.dtype);
  const bool same = entry->type == StoredTypeOf(dst.dtype);
  if (same && dst.is_dense()) return ReadAt(file_, path_, offset, dst.data, total * out_bytes);
  const int64_t capacity = std::min(total, kBufferBytes / in_bytes);
  std::vector<char> buffer(static_cast<size_t>(capacity * in_bytes));
  DensePieces pieces(dst);
  for (int64_t done = 0; done < total;) {
    const int64_t chunk = std::min(capacity, total - done);
    EK_RETURN_IF_ERROR(
        ReadAt(file_, path_, offset + done * in_bytes, buffer.data(), chunk * in_bytes));
    for (int64_t used = 0; used < chunk;) {
      const DensePieces::Piece piece = pieces.Next(chunk - used);
      const char* from = buffer.data() + used * in_bytes;
      char* to = static_cast<char*>(dst.data) + piece.offset * out_bytes;
      if (same) {
        std::memcpy(to, from, static_cast<size_t>(piece.count * in_bytes));
      } else {
        DispatchFloat(dst.dtype,
                      [&]<typename T>() { DecodeFloats<T>(entry->type, from, to, piece.count); });
      }
      used += piece.count;
    }
    done += chunk;
  }
  return absl::OkStatus();
}

absl::StatusOr<FileDigest> WriteSafetensors(const std::string& path,
                                            absl::Span<const SafetensorsTensor> tensors,
                                            const SafetensorsWriteOptions& options) {
  std::vector<const SafetensorsTensor*> order;
  for (const SafetensorsTensor& tensor : tensors) {
    EK_CHECK(tensor.tensor.device == Device::kCpu);
    if (!IsConvertible(tensor.type, tensor.tensor.dtype)) {
      return FileError(path, absl::StrCat("tensor \"", tensor.name, "\" is ",
                                          NameOf(StoredTypeOf(tensor.tensor.dtype)),
                                          " and cannot be stored as ", NameOf(tensor.type)));
    }
    if (tensor.name == "__metadata__") return FileError(path, "a tensor named __metadata__");
    order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return a->type != b->type ? a->type > b->type : a->name < b->name;
  });
  int64_t data_bytes = 0;
  const std::string text = HeaderText(order, options.metadata, data_bytes);
  // What our own reader refuses is not written: its rules on names are the writer's, too.
  if (absl::Status status = SafetensorsHeader::Parse(text, data_bytes).status(); !status.ok()) {
    return FileError(path, std::string(status.message()));
  }
  EK_ASSIGN_OR_RETURN(FileWriter writer, FileWriter::Create(path, options.hook));
  const uint64_t header_bytes = text.size();
  std::string head(sizeof(header_bytes), '\0');
  std::memcpy(head.data(), &header_bytes, sizeof(header_bytes));
  head += text;
  EK_RETURN_IF_ERROR(writer.Write(head.data(), static_cast<int64_t>(head.size())));
  for (const SafetensorsTensor* tensor : order) {
    EK_RETURN_IF_ERROR(WriteTensor(*tensor, writer));
  }
  return writer.Commit(options.sync);
}

}  // namespace evenkeel
