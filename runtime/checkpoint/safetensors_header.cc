#include "runtime/checkpoint/safetensors_header.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"

namespace evenkeel {
namespace {

struct TypeInfo {
  const char* name;
  int64_t bits;
};

// Indexed by StoredType.
constexpr std::array<TypeInfo, 22> kTypes = {{
    {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64},        {"U64", 64},
}};
static_assert(static_cast<size_t>(StoredType::kU64) + 1 == kTypes.size());

// `"":{"dtype":"U8","shape":[],"data_offsets":[0,0]}`: no tensor takes less text.
constexpr size_t kMinEntryBytes = 49;

bool IsDigit(char c) {
  return c >= '0' && c <= '9';
}

// Returns the position of the first byte that is not part of well-formed UTF-8 (RFC 3629: no
// overlong forms, no surrogates, nothing above U+10FFFF), or the size.
size_t FindInvalidUtf8(const std::string& text) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  const size_t size = text.size();
  for (size_t i = 0; i < size;) {
    const unsigned char lead = bytes[i];
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || size - i < length) return i;
    unsigned char low = 0x80, high = 0xbf;  // of the second byte
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
    if (bytes[i + 1] < low || bytes[i + 1] > high) return i;
    for (size_t k = 2; k < length; ++k) {
      if ((bytes[i + k] & 0xc0) != 0x80) return i;
    }
    i += length;
  }
  return size;
}

}  // namespace

const char* NameOf(StoredType type) {
  return kTypes[static_cast<size_t>(type)].name;
}
int64_t BitsOf(StoredType type) {
  return kTypes[static_cast<size_t>(type)].bits;
}

class SafetensorsHeaderParser {
 public:
  SafetensorsHeaderParser(SafetensorsHeader& header, int64_t data_bytes)
      : header_(header), text_(header.text_), data_bytes_(data_bytes) {}

  absl::Status Run() {
    if (const size_t bad = FindInvalidUtf8(text_); bad < text_.size()) {
      return ErrorAt(bad, "not UTF-8");
    }
    if (text_.empty() || text_[0] != '{') return ErrorAt(0, "expected '{'");
    header_.records_.reserve(text_.size() / kMinEntryBytes + 1);
    ++position_;
    for (bool first = true; !TryTake('}'); first = false) {
      if (!first && !TryTake(',')) return Expected(',');
      EK_ASSIGN_OR_RETURN(const Text key, TakeString());
      if (!TryTake(':')) return Expected(':');
      EK_RETURN_IF_ERROR(Matches(key, "__metadata__") ? TakeMetadata() : TakeTensor(key));
    }
    SkipSpace();
    if (position_ != text_.size()) return ErrorAt(position_, "text after the object");
    EK_RETURN_IF_ERROR(CheckTiling());
    return CheckNames();
  }

 private:
  using Record = SafetensorsHeader::Record;
  struct Text {
    size_t begin = 0;
    size_t size = 0;
  };

  absl::Status ErrorAt(size_t position, const std::string& what) const {
    return absl::InvalidArgumentError(absl::StrCat("header byte ", position, ": ", what));
  }
  absl::Status TensorError(const Record& record, const std::string& what) const {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor \"", text_.substr(record.name_begin, record.name_size), "\": ", what));
  }

  std::string StringOf(const Text& text) const { return text_.substr(text.begin, text.size); }
  bool Matches(const Text& text, std::string_view literal) const {
    return text.size == literal.size() && text_.compare(text.begin, text.size, literal) == 0;
  }

  void SkipSpace() {
    const char* const text = text_.data();
    const size_t size = text_.size();
    size_t at = position_;
    while (at < size &&
           (text[at] == ' ' || text[at] == '\n' || text[at] == '\t' || text[at] == '\r')) {
      ++at;
    }
    position_ = at;
  }

  bool TryTake(char c) {
    SkipSpace();
    if (position_ >= text_.size() || text_[position_] != c) return false;
    ++position_;
    return true;
  }

  absl::Status Expected(char c) const {
    return ErrorAt(position_, absl::StrCat("expected '", std::string(1, c), "'"));
  }

  absl::StatusOr<uint32_t> TakeHex4() {
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i, ++position_) {
      const char c = position_ < text_.size() ? text_[position_] : '\0';
      const int digit = IsDigit(c)               ? c - '0'
                        : (c >= 'a' && c <= 'f') ? c - 'a' + 10
                        : (c >= 'A' && c <= 'F') ? c - 'A' + 10
                                                 : -1;
      if (digit < 0) return ErrorAt(position_, "expected four hexadecimal digits");
      value = value * 16 + static_cast<uint32_t>(digit);
    }
    return value;
  }

  // After "\u": a code point, two escapes of it for one above U+FFFF.
  absl::StatusOr<uint32_t> TakeCodePoint() {
    const size_t start = position_;
    EK_ASSIGN_OR_RETURN(const uint32_t first, TakeHex4());
    if (first < 0xd800 || first > 0xdfff) return first;
    if (first < 0xdc00 && text_.compare(position_, 2, "\\u") == 0) {
      position_ += 2;
      EK_ASSIGN_OR_RETURN(const uint32_t second, TakeHex4());
      if (second >= 0xdc00 && second <= 0xdfff) {
        return 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
      }
    }
    return ErrorAt(start, "half of a surrogate pair");
  }

  // Moves past characters of a string that stand for themselves.
  void SkipPlain() {
    const char* const text = text_.data();
    const size_t size = text_.size();
    size_t at = position_;
    while (at < size && text[at] != '"' && text[at] != '\\' &&
           static_cast<unsigned char>(text[at]) >= 0x20) {
      ++at;
    }
    position_ = at;
  }

  absl::StatusOr<Text> TakeString() {
    if (!TryTake('"')) return Expected('"');
    const size_t begin = position_;
    SkipPlain();
    if (position_ >= text_.size() || text_[position_] != '"') return TakeRestOfString(begin);
    ++position_;
    return Text{begin, position_ - 1 - begin};
  }

  // Reads on from the first character of a string from `begin` on that does not stand for itself,
  // and unescapes it where it stands: no escape is shorter than what it means.
  absl::StatusOr<Text> TakeRestOfString(size_t begin) {
    size_t write = position_;
    const auto put = [&](uint32_t byte) { text_[write++] = static_cast<char>(byte); };
    while (true) {
      if (position_ >= text_.size()) return ErrorAt(begin - 1, "string without an end");
      const char c = text_[position_++];
      if (c == '"') return Text{begin, write - begin};
      if (static_cast<unsigned char>(c) < 0x20) {
        return ErrorAt(position_ - 1, "control character in a string");
      }
      if (c != '\\') {
        text_[write++] = c;
        continue;
      }
      const char escape = position_ < text_.size() ? text_[position_++] : '\0';
      switch (escape) {
        case '"':
        case '\\':
        case '/':
          text_[write++] = escape;
          break;
        case 'b':
          text_[write++] = '\b';
          break;
        case 'f':
          text_[write++] = '\f';
          break;
        case 'n':
          text_[write++] = '\n';
          break;
        case 'r':
          text_[write++] = '\r';
          break;
        case 't':
          text_[write++] = '\t';
          break;
        case 'u': {
          EK_ASSIGN_OR_RETURN(const uint32_t point, TakeCodePoint());
          if (point < 0x80) {
            put(point);
          } else if (point < 0x800) {
            put(0xc0 | point >> 6);
            put(0x80 | (point & 0x3f));
          } else if (point < 0x10000) {
            put(0xe0 | point >> 12);
            put(0x80 | (point >> 6 & 0x3f));
            put(0x80 | (point & 0x3f));
          } else {
            put(0xf0 | point >> 18);
            put(0x80 | (point >> 12 & 0x3f));
            put(0x80 | (point >> 6 & 0x3f));
            put(0x80 | (point & 0x3f));
          }
          break;
        }
        default:
          return ErrorAt(position_ - 1, "unknown escape");
      }
    }
  }

  absl::StatusOr<int64_t> TakeInteger() {
    SkipSpace();
    const size_t start = position_;
    int64_t value = 0;
    while (position_ < text_.size() && IsDigit(text_[position_])) {
      if (__builtin_mul_overflow(value, 10, &value) ||
          __builtin_add_overflow(value, text_[position_] - '0', &value)) {
        return ErrorAt(start, "number beyond 2^63 - 1");
      }
      ++position_;
    }
    const char next = position_ < text_.size() ? text_[position_] : '\0';
    const bool leading_zero = position_ - start > 1 && text_[start] == '0';
    if (position_ == start || leading_zero || next == '.' || next == 'e' || next == 'E') {
      return ErrorAt(start, "expected a non-negative integer");
    }
    return value;
  }

  absl::Status TakeMetadata() {
    if (has_metadata_) return ErrorAt(position_, "a second __metadata__");
    has_metadata_ = true;
    if (!TryTake('{')) return Expected('{');
    for (bool first = true; !TryTake('}'); first = false) {
      if (!first && !TryTake(',')) return Expected(',');
      const size_t start = position_;
      EK_ASSIGN_OR_RETURN(const Text key, TakeString());
      if (!TryTake(':')) return Expected(':');
      EK_ASSIGN_OR_RETURN(const Text value, TakeString());
      if (!header_.metadata_.emplace(StringOf(key), StringOf(value)).second) {
        return ErrorAt(start, "duplicate key in __metadata__");
      }
      if (static_cast<int64_t>(header_.metadata_.size()) > kMaxMetadataEntries) {
        return ErrorAt(start, absl::StrCat("more than ", kMaxMetadataEntries, " metadata entries"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status CheckName(const Text& name) const {
    if (static_cast<int64_t>(name.size) > kMaxTensorNameBytes) {
      return ErrorAt(name.begin, absl::StrCat("a tensor name of ", name.size, " bytes; at most ",
                                              kMaxTensorNameBytes, " are allowed"));
    }
    for (size_t i = name.begin; i < name.begin + name.size; ++i) {
      if (static_cast<unsigned char>(text_[i]) < 0x20 || text_[i] == 0x7f) {
        return ErrorAt(i, "control character in a tensor name");
      }
      if (text_[i] == '.' && i + 3 <= name.begin + name.size && text_.compare(i, 3, "../") == 0) {
        return ErrorAt(i, "\"../\" in a tensor name");
      }
    }
    return absl::OkStatus();
  }

  absl::Status TakeType(Record& record) {
    const size_t start = position_;
    EK_ASSIGN_OR_RETURN(const Text name, TakeString());
    const auto it = std::find_if(kTypes.begin(), kTypes.end(),
                                 [&](const TypeInfo& type) { return Matches(name, type.name); });
    if (it == kTypes.end()) return ErrorAt(start, "unknown dtype");
    record.type = static_cast<StoredType>(it - kTypes.begin());
    return absl::OkStatus();
  }

  // Leaves the number of elements in `elements`.
  absl::Status TakeShape(Record& record, int64_t& elements) {
    if (!TryTake('[')) return Expected('[');
    record.shape_begin = static_cast<uint32_t>(position_);
    elements = 1;
    for (bool first = true; !TryTake(']'); first = false) {
      if (!first && !TryTake(',')) return Expected(',');
      EK_ASSIGN_OR_RETURN(const int64_t size, TakeInteger());
      if (__builtin_mul_overflow(elements, size, &elements)) {
        return TensorError(record, "its shape has more than 2^63 - 1 elements");
      }
    }
    return absl::OkStatus();
  }

  absl::Status TakeOffsets(Record& record) {
    if (!TryTake('[')) return Expected('[');
    EK_ASSIGN_OR_RETURN(record.begin, TakeInteger());
    if (!TryTake(',')) return Expected(',');
    EK_ASSIGN_OR_RETURN(record.end, TakeInteger());
    return TryTake(']') ? absl::OkStatus() : Expected(']');
  }

  absl::Status TakeTensor(const Text& name) {
    EK_RETURN_IF_ERROR(CheckName(name));
    Record record = {};
    record.name_begin = static_cast<uint32_t>(name.begin);
    record.name_size = static_cast<uint32_t>(name.size);
    int64_t elements = 0;
    bool has_type = false, has_shape = false, has_offsets = false;
    if (!TryTake('{')) return Expected('{');
    for (bool first = true; !TryTake('}'); first = false) {
      if (!first && !TryTake(',')) return Expected(',');
      const size_t start = position_;
      EK_ASSIGN_OR_RETURN(const Text key, TakeString());
      if (!TryTake(':')) return Expected(':');
      if (Matches(key, "dtype") && !std::exchange(has_type, true)) {
        EK_RETURN_IF_ERROR(TakeType(record));
      } else if (Matches(key, "shape") && !std::exchange(has_shape, true)) {
        EK_RETURN_IF_ERROR(TakeShape(record, elements));
      } else if (Matches(key, "data_offsets") && !std::exchange(has_offsets, true)) {
        EK_RETURN_IF_ERROR(TakeOffsets(record));
      } else {
        return ErrorAt(start, "unknown or duplicate key of a tensor");
      }
    }
    if (!has_type || !has_shape || !has_offsets) {
      return TensorError(record, "needs dtype, shape and data_offsets");
    }
    int64_t bits = 0;
    if (__builtin_mul_overflow(elements, BitsOf(record.type), &bits) || bits % 8 != 0) {
      return TensorError(record, "its size is not a whole number of bytes below 2^60");
    }
    if (record.begin > record.end || record.end > data_bytes_) {
      return TensorError(record, absl::StrCat("data_offsets [", record.begin, ", ", record.end,
                                              "] outside the file's ", data_bytes_, " data bytes"));
    }
    if (record.end - record.begin != bits / 8) {
      return TensorError(record, absl::StrCat("data_offsets hold ", record.end - record.begin,
                                              " bytes, its shape and dtype need ", bits / 8));
    }
    header_.records_.push_back(record);
    return absl::OkStatus();
  }

  absl::Status CheckTiling() {
    std::vector<Record>& records = header_.records_;
    const auto before = [](const Record& a, const Record& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    };
    if (!std::is_sorted(records.begin(), records.end(), before)) {
      std::sort(records.begin(), records.end(), before);
    }
    int64_t expected = 0;
    for (const Record& record : records) {
      if (record.begin != expected) {
        return TensorError(
            record,
            absl::StrCat(record.begin < expected ? "overlaps another tensor" : "follows a hole",
                         ": begins at byte ", record.begin, ", expected ", expected));
      }
      expected = record.end;
    }
    if (expected != data_bytes_) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the tensors take ", expected, " bytes, but the file has ", data_bytes_, " data bytes"));
    }
    return absl::OkStatus();
  }

  absl::Status CheckNames() {
    const std::vector<Record>& records = header_.records_;
    std::vector<uint32_t>& order = header_.by_name_;
    order.resize(records.size());
    std::iota(order.begin(), order.end(), uint32_t{0});
    const auto compare = [&](uint32_t a, uint32_t b) {
      return header_.CompareNames(records[a], text_.data() + records[b].name_begin,
                                  records[b].name_size);
    };
    std::sort(order.begin(), order.end(),
              [&](uint32_t a, uint32_t b) { return compare(a, b) < 0; });
    for (size_t i = 1; i < order.size(); ++i) {
      if (compare(order[i - 1], order[i]) == 0) {
        return TensorError(records[order[i]], "appears twice");
      }
    }
    return absl::OkStatus();
  }

  SafetensorsHeader& header_;
  std::string& text_;
  const int64_t data_bytes_;
  size_t position_ = 0;
  bool has_metadata_ = false;
};

absl::StatusOr<SafetensorsHeader> SafetensorsHeader::Parse(std::string text, int64_t data_bytes) {
  if (static_cast<int64_t>(text.size()) > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat("a header of ", text.size(), " bytes; at most ",
                                                   kMaxSafetensorsHeaderBytes, " are allowed"));
  }
  SafetensorsHeader header;
  header.text_ = std::move(text);
  EK_RETURN_IF_ERROR(SafetensorsHeaderParser(header, data_bytes).Run());
  return header;
}

int SafetensorsHeader::CompareNames(const Record& record, const char* name, size_t size) const {
  const int order =
      std::memcmp(text_.data() + record.name_begin, name, std::min<size_t>(record.name_size, size));
  if (order != 0) return order;
  return record.name_size < size ? -1 : record.name_size > size ? 1 : 0;
}

SafetensorsEntry SafetensorsHeader::entry(int64_t index) const {
  EK_CHECK(0 <= index && index < num_tensors()) << index;
  const Record& record = records_[static_cast<size_t>(index)];
  SafetensorsEntry entry{
      text_.substr(record.name_begin, record.name_size), record.type, {}, record.begin, record.end};
  // The parser has accepted this text: digits, commas and white space up to ']'.
  for (size_t i = record.shape_begin; text_[i] != ']';) {
    if (!IsDigit(text_[i])) {
      ++i;
      continue;
    }
    int64_t size = 0;
    for (; IsDigit(text_[i]); ++i) size = size * 10 + (text_[i] - '0');
    entry.shape.push_back(size);
  }
  return entry;
}

std::optional<SafetensorsEntry> SafetensorsHeader::Find(const std::string& name) const {
  const auto it = std::lower_bound(
      by_name_.begin(), by_name_.end(), name, [&](uint32_t index, const std::string& wanted) {
        return CompareNames(records_[index], wanted.data(), wanted.size()) < 0;
      });
  if (it == by_name_.end() || CompareNames(records_[*it], name.data(), name.size()) != 0) {
    return std::nullopt;
  }
  return entry(*it);
}

}  // namespace evenkeel
