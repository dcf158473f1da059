#include "runtime/checkpoint/safetensors_header.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>
#include <random>

#include "absl/strings/str_cat.h"
#include "runtime/base/exit_code.h"
#include "runtime/checkpoint/safetensors_file.h"
#include "tests/unit/checkpoint/allocation_peak.h"
#include "tests/unit/checkpoint/test_folder.h"

namespace evenkeel {
namespace {

using ::testing::HasSubstr;

constexpr char kGood[] = R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})";

std::string Little64(uint64_t value) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &value, 8);
  return bytes;
}

// A tensor of U8 bytes.
std::string Entry(const std::string& name, int64_t begin, int64_t end) {
  return absl::StrCat("\"", name, R"(":{"dtype":"U8","shape":[)", end - begin,
                      R"(],"data_offsets":[)", begin, ",", end, "]}");
}

std::string WithShape(const std::string& shape) {
  return absl::StrCat(R"({"a":{"dtype":"U8","shape":)", shape, R"(,"data_offsets":[0,2]}})");
}
std::string WithOffsets(const std::string& offsets) {
  return absl::StrCat(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":)", offsets, "}}");
}
std::string WithName(const std::string& name) {
  return absl::StrCat("{", Entry(name, 0, 2), "}");
}

struct HostileCase {
  std::string what;
  std::string file;
  std::string reason;
};

std::vector<HostileCase> HostileCases() {
  std::vector<HostileCase> cases;
  const auto raw = [&](const char* what, std::string file, const char* reason) {
    cases.push_back({what, std::move(file), reason});
  };
  // Headers before two data bytes.
  const auto header = [&](const char* what, const std::string& text, const char* reason) {
    cases.push_back({what, SafetensorsBytes(text, "xy"), reason});
  };
  raw("empty file", "", "no safetensors file");
  raw("seven bytes", "1234567", "no safetensors file");
  raw("N = 0", Little64(0) + kGood, "expected '{'");
  raw("N = 2^64 - 1", Little64(~uint64_t{0}) + kGood, "at most 100000000");
  raw("N = 2^63", Little64(uint64_t{1} << 63) + kGood, "at most 100000000");
  raw("N above the limit", Little64(100'000'001) + kGood, "at most 100000000");
  raw("N at the limit, beyond the file", Little64(100'000'000) + kGood, "the file has only");
  raw("N one beyond the file", Little64(sizeof(kGood)) + kGood, "the file has only");
  raw("trailing bytes", SafetensorsBytes(kGood, "xyz"), "the file has 3 data bytes");
  raw("missing byte", SafetensorsBytes(kGood, "x"), "outside the file's 1 data bytes");

  header("not an object", R"(["a"])", "expected '{'");
  header("leading space", absl::StrCat(" ", kGood), "expected '{'");
  header("text after the object", absl::StrCat(kGood, "x"), "text after the object");
  header("second object", absl::StrCat(kGood, "{}"), "text after the object");
  header("NUL padding", std::string(kGood) + '\0', "text after the object");
  header("empty object", "{}", "the file has 2 data bytes");
  header("cut object", "{", "expected '\"'");
  header("trailing comma", absl::StrCat("{", Entry("a", 0, 2), ",}"), "expected '\"'");
  header("no comma", absl::StrCat("{", Entry("a", 0, 1), Entry("b", 1, 2), "}"), "expected ','");

  header("lone continuation byte", WithName("\x80"), "not UTF-8");
  header("overlong NUL", WithName("\xc0\x80"), "not UTF-8");
  header("UTF-8 surrogate", WithName("\xed\xa0\x80"), "not UTF-8");
  header("above U+10FFFF", WithName("\xf4\x90\x80\x80"), "not UTF-8");
  header("cut sequence", "{\"\xe2\x82", "not UTF-8");
  header("Latin-1", WithName("caf\xe9"), "not UTF-8");

  header("depth bomb of arrays", WithShape(std::string(1'000'000, '[')), "non-negative integer");
  std::string objects;
  for (int i = 0; i < 200'000; ++i) objects += "{\"a\":";
  header("depth bomb of objects", objects, "unknown or duplicate key");
  header("string without an end", "{\"aaaa", "string without an end");
  header("unknown escape", WithName("\\x41"), "unknown escape");
  header("short escape", WithName("\\u12"), "hexadecimal");
  header("half a surrogate pair", WithName("\\ud800"), "surrogate");
  header("surrogates the wrong way", WithName("\\udc00\\ud800"), "surrogate");
  header("control character", WithName("a\nb"), "control character");
  header("escaped NUL in a name", WithName("a\\u0000b"), "control character");
  header("raw NUL in a name", WithName(std::string("a\0b", 3)), "control character");
  header("DEL in a name", WithName("a\x7f"), "control character");
  header("path in a name", WithName("../../etc/passwd"), "\"../\"");
  header("escaped path in a name", WithName("..\\/x"), "\"../\"");
  header("name of 1 MB", WithName(std::string(1'000'000, 'n')), "at most 1024");

  header("duplicate tensor", absl::StrCat("{", Entry("a", 0, 1), ",", Entry("a", 1, 2), "}"),
         "appears twice");
  header("duplicate by escape",
         absl::StrCat("{", Entry("a", 0, 1), ",", Entry("\\u0061", 1, 2), "}"), "appears twice");
  header("duplicate key", R"({"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
         "unknown or duplicate key");
  header("unknown key", R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"x":1}})",
         "unknown or duplicate key");
  header("no shape", R"({"a":{"dtype":"U8","data_offsets":[0,2]}})", "needs dtype, shape");
  header("no offsets", R"({"a":{"dtype":"U8","shape":[2]}})", "needs dtype, shape");
  header("empty tensor", R"({"a":{}})", "needs dtype, shape");
  header("tensor is a number", R"({"a":1})", "expected '{'");
  header("unknown dtype", R"({"a":{"dtype":"F31","shape":[2],"data_offsets":[0,2]}})",
         "unknown dtype");
  header("lower-case dtype", R"({"a":{"dtype":"u8","shape":[2],"data_offsets":[0,2]}})",
         "unknown dtype");
  header("dtype is a number", R"({"a":{"dtype":8,"shape":[2],"data_offsets":[0,2]}})",
         "expected '\"'");
  header("half a byte", R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", "whole number");

  header("negative size", WithShape("[-2]"), "non-negative integer");
  header("fraction", WithShape("[2.0]"), "non-negative integer");
  header("exponent", WithShape("[1e3]"), "non-negative integer");
  header("leading zero", WithShape("[02]"), "non-negative integer");
  header("plus sign", WithShape("[+2]"), "non-negative integer");
  header("text size", WithShape("[\"2\"]"), "non-negative integer");
  header("null shape", WithShape("null"), "expected '['");
  header("comma in shape", WithShape("[2,]"), "non-negative integer");
  header("size of 2^63", WithShape("[9223372036854775808]"), "beyond 2^63 - 1");
  header("size of 30 digits", WithShape("[" + std::string(30, '9') + "]"), "beyond 2^63 - 1");
  header("product overflows", WithShape("[4294967296,4294967296]"), "more than 2^63 - 1 elements");
  header("product overflows to 2", WithShape("[9223372036854775807,9223372036854775807,2]"),
         "more than 2^63 - 1 elements");
  header("bits overflow", WithShape("[4611686018427387904]"), "whole number of bytes");
  header("shape too large for its bytes", WithShape("[3]"), "need 3");
  header("shape too small for its bytes", WithShape("[1]"), "need 1");

  header("offsets reversed", WithOffsets("[2,0]"), "outside the file's");
  header("offsets beyond the file", WithOffsets("[2,4]"), "outside the file's");
  header("offset of 2^63 - 1", WithOffsets("[9223372036854775805,9223372036854775807]"),
         "outside the file's");
  header("negative offset", WithOffsets("[-2,0]"), "non-negative integer");
  header("one offset", WithOffsets("[0]"), "expected ','");
  header("three offsets", WithOffsets("[0,2,2]"), "expected ']'");
  header("hole before", absl::StrCat("{", Entry("a", 1, 2), "}"), "follows a hole");
  header("hole behind", absl::StrCat("{", Entry("a", 0, 1), "}"), "the file has 2 data bytes");
  header("same bytes twice", absl::StrCat("{", Entry("a", 0, 2), ",", Entry("b", 0, 2), "}"),
         "overlaps");
  header("zero-size inside another",
         absl::StrCat("{", Entry("a", 0, 2), ",", Entry("b", 1, 1), "}"), "overlaps");
  cases.push_back({"partial overlap and hole",
                   SafetensorsBytes(absl::StrCat("{", Entry("a", 0, 3), ",", Entry("b", 2, 3), ",",
                                                 Entry("c", 4, 6), "}"),
                                    "123456"),
                   "overlaps"});
  cases.push_back(
      {"hole in the middle",
       SafetensorsBytes(absl::StrCat("{", Entry("a", 0, 2), ",", Entry("b", 4, 6), "}"), "123456"),
       "follows a hole"});

  header("metadata is a list", R"({"__metadata__":[]})", "expected '{'");
  header("metadata value is a number", R"({"__metadata__":{"a":1}})", "expected '\"'");
  header("metadata value is an object", R"({"__metadata__":{"a":{}}})", "expected '\"'");
  header("metadata twice", R"({"__metadata__":{},"__metadata__":{}})", "second __metadata__");
  header("metadata key twice", R"({"__metadata__":{"a":"","a":""}})", "duplicate key");

  // What Hugging Face's own abuse files do: very many tensors over the same bytes.
  std::string many = "{";
  for (int i = 0; i < 400'000; ++i)
    absl::StrAppend(&many, i > 0 ? "," : "", Entry(absl::StrCat("w", i), 0, 2));
  header("400 000 tensors over the same bytes", many + "}", "overlaps");
  many = "{";
  for (int i = 0; i < 400'000; ++i)
    absl::StrAppend(&many, i > 0 ? "," : "", Entry(absl::StrCat("w", i % 399'999), 0, 0));
  header("400 000 empty tensors, then a hole", many + "}", "data bytes");
  std::string metadata = R"({"__metadata__":{"k":"")";
  for (int i = 0; i < 400'000; ++i) absl::StrAppend(&metadata, ",\"", i, "\":\"\"");
  header("400 000 metadata entries", metadata + "}}", "more than 16384 metadata");
  return cases;
}

TEST(SafetensorsHeader, RefusesHostileFilesFastAndSmall) {
  const TestFolder folder;
  for (const HostileCase& hostile : HostileCases()) {
    SCOPED_TRACE(hostile.what);
    const std::string path = folder / "hostile.safetensors";
    WriteBytes(path, hostile.file);
    ResetAllocationPeak();
    const std::clock_t start = std::clock();  // processor time: others may load the machine
    const absl::Status status = SafetensorsReader::Open(path).status();
    const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    const int64_t peak = AllocationPeak();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr(hostile.reason));
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kCheckpoint);
    EXPECT_LT(status.message().size(), 2 * kMaxTensorNameBytes);
    EXPECT_LT(seconds, 1.0);
    // Metadata entries are few at most, but small.
    const int64_t metadata = hostile.what == "400 000 metadata entries" ? 4 << 20 : 0;
    EXPECT_LT(peak, 2 * static_cast<int64_t>(hostile.file.size()) + 16384 + metadata);
  }
}

TEST(SafetensorsHeader, TakesWhatTheFormatAllows) {
  const std::string text =
      "{ \"__metadata__\" : {\"k\":\"line\\nbreak \\\"q\\\"\",\"\":\"\"},\n\t"
      "\"b\":{\"data_offsets\":[8,8],\"shape\":[0,9223372036854775807],\"dtype\":\"F32\"},\r"
      "\"\\u00e9\\ud83d\\ude00\\/\" : { \"dtype\":\"F64\", \"shape\" : [ ] , \"data_offsets\":[ 0 "
      ", 8 ]},"
      "\"\":{\"dtype\":\"F4\",\"shape\":[3,2,1,1,1,1,1],\"data_offsets\":[8,11]}}    ";
  const absl::StatusOr<SafetensorsHeader> header = SafetensorsHeader::Parse(text, 11);
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->num_tensors(), 3);
  const std::string unescaped = "\xc3\xa9\xf0\x9f\x98\x80/";
  EXPECT_EQ(header->entry(0).name, unescaped);
  EXPECT_EQ(header->entry(1).name, "b");
  EXPECT_EQ(header->entry(2).name, "");
  EXPECT_EQ(header->entry(0).type, StoredType::kF64);
  EXPECT_TRUE(header->entry(0).shape.empty());
  EXPECT_THAT(header->entry(1).shape, ::testing::ElementsAre(0, 9223372036854775807));
  EXPECT_THAT(header->entry(2).shape, ::testing::ElementsAre(3, 2, 1, 1, 1, 1, 1));
  EXPECT_EQ(header->entry(2).begin, 8);
  EXPECT_EQ(header->entry(2).end, 11);
  EXPECT_EQ(header->metadata().at("k"), "line\nbreak \"q\"");
  ASSERT_TRUE(header->Find(unescaped).has_value());
  EXPECT_EQ(header->Find(unescaped)->end, 8);
  EXPECT_FALSE(header->Find("c").has_value());
  EXPECT_TRUE(SafetensorsHeader::Parse("{}", 0).ok());
}

TEST(SafetensorsHeader, ManyTensorsStayCheap) {
  std::string text = "{";
  for (int i = 0; i < 100'000; ++i) {
    absl::StrAppend(&text, i > 0 ? "," : "", Entry(absl::StrCat(i * 7919 % 100'003), i, i + 1));
  }
  text += "}";
  ResetAllocationPeak();
  const absl::StatusOr<SafetensorsHeader> header = SafetensorsHeader::Parse(text, 100'000);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_LT(AllocationPeak(), 2 * static_cast<int64_t>(text.size()));
  for (int i = 0; i < 100'000; i += 997) {
    ASSERT_EQ(header->Find(absl::StrCat(i * 7919 % 100'003))->begin, i);
  }
}

TEST(SafetensorsHeader, TruncatedAnywhereIsRefused) {
  const TestFolder folder;
  const std::string good =
      SafetensorsBytes(absl::StrCat(R"({"__metadata__":{"format":"pt"},)",
                                    Entry("first\\u00e9", 0, 3), ",", Entry("second", 3, 8), "}  "),
                       "abcdefgh");
  const std::string path = folder / "cut.safetensors";
  for (size_t size = 0; size <= good.size(); ++size) {
    WriteBytes(path, good.substr(0, size));
    EXPECT_EQ(SafetensorsReader::Open(path).ok(), size == good.size()) << size;
    // The same with a length field that fits what is left.
    if (size < 8 || size >= good.size() - 10) continue;
    WriteBytes(path, SafetensorsBytes(good.substr(8, size - 8), ""));
    EXPECT_FALSE(SafetensorsReader::Open(path).ok()) << size;
  }
}

TEST(SafetensorsHeader, RandomDamageIsRefusedOrHarmless) {
  const std::string text = absl::StrCat(
      R"({"__metadata__":{"format":"pt"},)", Entry("a\\u00e9\\\"", 0, 3), ",", Entry("b", 3, 8),
      ",", R"("c":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]}}   )");
  std::mt19937_64 random(20260823);
  const std::string alphabet = "{}[]\",:\\0123456789-.eudatshpoffset \x01\x7f\x80\xc3\xff";
  int accepted = 0;
  for (int round = 0; round < 200'000; ++round) {
    std::string damaged = text;
    const int edits = 1 + static_cast<int>(random() % 3);
    for (int k = 0; k < edits; ++k) {
      const size_t at = random() % damaged.size();
      const char c = alphabet[random() % alphabet.size()];
      switch (random() % 4) {
        case 0:
          damaged[at] = c;
          break;
        case 1:
          damaged.insert(at, 1, c);
          break;
        case 2:
          damaged.erase(at, 1 + random() % 4);
          break;
        default:
          damaged[at] = static_cast<char>(damaged[at] ^ 1 << random() % 8);
          break;
      }
    }
    const absl::StatusOr<SafetensorsHeader> header = SafetensorsHeader::Parse(damaged, 20);
    if (!header.ok()) continue;
    ++accepted;
    // What is accepted still tiles the data exactly.
    int64_t expected = 0;
    for (int64_t i = 0; i < header->num_tensors(); ++i) {
      const SafetensorsEntry entry = header->entry(i);
      int64_t bits = BitsOf(entry.type);
      for (int64_t size : entry.shape) bits *= size;
      ASSERT_EQ(entry.begin, expected) << damaged;
      ASSERT_EQ(entry.end - entry.begin, bits / 8) << damaged;
      ASSERT_TRUE(header->Find(entry.name).has_value()) << damaged;
      expected = entry.end;
    }
    ASSERT_EQ(expected, 20) << damaged;
  }
  EXPECT_GT(accepted, 0);
}

}  // namespace
}  // namespace evenkeel
