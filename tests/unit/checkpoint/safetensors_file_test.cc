#include "runtime/checkpoint/safetensors_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/exit_code.h"
#include "runtime/checkpoint/float_convert.h"
#include "runtime/checkpoint/safetensors_folder.h"
#include "tests/unit/checkpoint/test_folder.h"

namespace evenkeel {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Written by the Python package safetensors 0.8.0:
//   save({"w.bias": bfloat16 [1.5, -2, inf], "w.weight": float32 [[1, 2], [3, -4.5]],
//         "scale": float64 0.1, "ids": int64 [7, -1], "none": float32 zeros(0, 4),
//         'q"uote\\<e acute>': float16 [6.1e-5, 65504, 1e-7]}, metadata={"format": "pt"})
std::string PythonFile() {
  std::string header =
      R"({"__metadata__":{"format":"pt"},"ids":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},)"
      R"("scale":{"dtype":"F64","shape":[],"data_offsets":[16,24]},)"
      R"("none":{"dtype":"F32","shape":[0,4],"data_offsets":[24,24]},)"
      R"("w.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[24,40]},)"
      R"("w.bias":{"dtype":"BF16","shape":[3],"data_offsets":[40,46]},)"
      "\"q\\\"uote\\\\\xc3\xa9\""
      R"(:{"dtype":"F16","shape":[3],"data_offsets":[46,52]}}    )";
  return SafetensorsBytes(
      header, absl::HexStringToBytes("0700000000000000ffffffffffffffff9a9999999999b93f0000803f"
                                     "0000004000004040000090c0c03f00c0807fff03ff7b0200"));
}

TEST(SafetensorsFile, WritesTheVeryBytesOfPython) {
  const TestFolder folder;
  const float bias[] = {1.5f, -2.0f, std::numeric_limits<float>::infinity()};
  const float weight[] = {1.0f, 2.0f, 3.0f, -4.5f};
  const double scale = 0.1, quote[] = {6.1e-5, 65504, 1e-7};
  const int64_t ids[] = {7, -1};
  const SafetensorsTensor tensors[] = {
      {"w.bias", {bias, DType::kF32, {3}}, StoredType::kBF16},
      {"w.weight", {weight, DType::kF32, {2, 2}}, StoredType::kF32},
      {"scale", {&scale, DType::kF64, {}}, StoredType::kF64},
      {"ids", {ids, DType::kI64, {2}}, StoredType::kI64},
      {"none", {weight, DType::kF32, {0, 4}}, StoredType::kF32},
      {"q\"uote\\\xc3\xa9", {quote, DType::kF64, {3}}, StoredType::kF16},
  };
  const std::string path = folder / "ours.safetensors";
  const absl::StatusOr<FileDigest> digest = WriteSafetensors(path, tensors);
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(ReadBytes(path), PythonFile());
  EXPECT_EQ(digest->bytes, static_cast<int64_t>(PythonFile().size()));
  EXPECT_EQ(digest->xxh3_128, HashText(PythonFile()));
}

TEST(SafetensorsFile, ReadsAPythonFile) {
  const TestFolder folder;
  const std::string path = folder / "python.safetensors";
  WriteBytes(path, PythonFile());
  const absl::StatusOr<SafetensorsReader> reader = SafetensorsReader::Open(path);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ(reader->metadata().at("format"), "pt");
  float bias[3] = {}, scale = 0, quote[3] = {};
  double weight[4] = {};
  int64_t ids[2] = {};
  EXPECT_TRUE(reader->ReadTensor("w.bias", {bias, DType::kF32, {3}}).ok());
  EXPECT_TRUE(reader->ReadTensor("scale", {&scale, DType::kF32, {}}).ok());
  EXPECT_TRUE(reader->ReadTensor("w.weight", {weight, DType::kF64, {2, 2}}).ok());
  EXPECT_TRUE(reader->ReadTensor("ids", {ids, DType::kI64, {2}}).ok());
  EXPECT_TRUE(reader->ReadTensor("none", {weight, DType::kF64, {0, 4}}).ok());
  EXPECT_TRUE(reader->ReadTensor("q\"uote\\\xc3\xa9", {quote, DType::kF32, {3}}).ok());
  EXPECT_THAT(bias, ElementsAre(1.5f, -2.0f, std::numeric_limits<float>::infinity()));
  EXPECT_EQ(scale, 0.1f);
  EXPECT_THAT(weight, ElementsAre(1, 2, 3, -4.5));
  EXPECT_THAT(ids, ElementsAre(7, -1));
  EXPECT_THAT(quote, ElementsAre(1023 * 0x1p-24f, 65504.0f, 0x1p-23f));
}

TEST(SafetensorsFile, NamesTensorAndBothShapesInErrors) {
  const TestFolder folder;
  const std::string path = folder / "python.safetensors";
  WriteBytes(path, PythonFile());
  const absl::StatusOr<SafetensorsReader> reader = SafetensorsReader::Open(path);
  ASSERT_TRUE(reader.ok()) << reader.status();
  float buffer[8] = {};
  const absl::Status shape = reader->ReadTensor("w.weight", {buffer, DType::kF32, {4, 1}});
  EXPECT_THAT(std::string(shape.message()), HasSubstr(path));
  EXPECT_THAT(std::string(shape.message()),
              HasSubstr("\"w.weight\" has shape [2, 2], but [4, 1] is needed"));
  EXPECT_EQ(ExitCodeOf(shape), ExitCode::kCheckpoint);
  EXPECT_FALSE(reader->ReadTensor("w.weight", {buffer, DType::kF32, {2, 2, 1}}).ok());
  EXPECT_FALSE(reader->ReadTensor("scale", {buffer, DType::kF32, {1}}).ok());
  const absl::Status type = reader->ReadTensor("ids", {buffer, DType::kF32, {2}});
  EXPECT_THAT(std::string(type.message()), HasSubstr("is I64, which cannot become F32"));
  EXPECT_TRUE(absl::IsNotFound(reader->ReadTensor("w", {buffer, DType::kF32, {2}})));
  EXPECT_THAT(buffer, ::testing::Each(0.0f));
}

TEST(SafetensorsFile, TruncationAfterOpeningIsAnError) {
  const TestFolder folder;
  const std::string path = folder / "x.safetensors";
  WriteBytes(path, PythonFile());
  const absl::StatusOr<SafetensorsReader> reader = SafetensorsReader::Open(path);
  ASSERT_TRUE(reader.ok()) << reader.status();
  ASSERT_EQ(truncate(path.c_str(), static_cast<off_t>(PythonFile().size()) - 20), 0);
  float weight[4] = {};
  const absl::Status status = reader->ReadTensor("w.weight", {weight, DType::kF32, {2, 2}});
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path));
}

// Every conversion, at shapes that cross the copy buffer, against element-wise casts.
TEST(SafetensorsFile, RoundTripsEveryTypeAndShape) {
  const TestFolder folder;
  std::mt19937_64 random(7);
  const std::vector<Shape> shapes = {
      {}, {0}, {1}, {3, 0, 5}, {7, 11}, {1, 1, 1, 1, 1}, {2, 3, 5, 7, 11}, {13, 65'537}};
  const std::vector<StoredType> types = {StoredType::kF16, StoredType::kBF16, StoredType::kF32,
                                         StoredType::kF64};
  for (const Shape& shape : shapes) {
    const int64_t count = shape.num_elements();
    std::vector<double> values(static_cast<size_t>(count) + 1);
    for (double& value : values) {
      value = std::ldexp(static_cast<double>(random()), static_cast<int>(random() % 40) - 84) *
              (random() % 2 ? 1 : -1);
    }
    std::vector<float> floats(values.begin(), values.end());
    std::vector<SafetensorsTensor> tensors;
    for (StoredType type : types) {
      tensors.push_back(
          {absl::StrCat("d", NameOf(type)), {values.data(), DType::kF64, shape}, type});
      tensors.push_back(
          {absl::StrCat("f", NameOf(type)), {floats.data(), DType::kF32, shape}, type});
    }
    const std::string path = folder / "all.safetensors";
    ASSERT_TRUE(WriteSafetensors(path, tensors).ok());
    const absl::StatusOr<SafetensorsReader> reader = SafetensorsReader::Open(path);
    ASSERT_TRUE(reader.ok()) << reader.status();
    for (const SafetensorsTensor& tensor : tensors) {
      SCOPED_TRACE(absl::StrCat(tensor.name, " ", shape.ToString()));
      std::vector<double> wide(values.size());
      std::vector<float> narrow(values.size());
      ASSERT_TRUE(reader->ReadTensor(tensor.name, {wide.data(), DType::kF64, shape}).ok());
      ASSERT_TRUE(reader->ReadTensor(tensor.name, {narrow.data(), DType::kF32, shape}).ok());
      for (int64_t i = 0; i < count; ++i) {
        const auto at = static_cast<size_t>(i);
        double expected = tensor.name[0] == 'f' ? floats[at] : values[at];
        switch (tensor.type) {
          case StoredType::kF32:
            expected = static_cast<float>(expected);
            break;
          case StoredType::kBF16:
            expected = FloatFromBF16(BF16FromFloat(static_cast<float>(expected)));
            break;
          case StoredType::kF16:
            expected = FloatFromF16(F16FromFloat(static_cast<float>(expected)));
            break;
          default:
            break;
        }
        ASSERT_EQ(wide[at], expected) << i;
        ASSERT_EQ(narrow[at], static_cast<float>(expected)) << i;
      }
      EXPECT_EQ(wide.back(), 0) << "written beyond the end";
    }
  }
}

TEST(SafetensorsFile, KeepsIntegersAndBF16BitForBit) {
  const TestFolder folder;
  const int32_t ints[] = {1, -2, std::numeric_limits<int32_t>::min()};
  const uint16_t halves[] = {0x7fc1, 0xff80, 0x0001};  // a NaN with payload, -inf, a subnormal
  const SafetensorsTensor tensors[] = {{"i", {ints, DType::kI32, {3}}, StoredType::kI32},
                                       {"h", {halves, DType::kBF16, {3, 1}}, StoredType::kBF16}};
  const std::string path = folder / "bits.safetensors";
  ASSERT_TRUE(WriteSafetensors(path, tensors).ok());
  const absl::StatusOr<SafetensorsReader> reader = SafetensorsReader::Open(path);
  ASSERT_TRUE(reader.ok()) << reader.status();
  int32_t ints_back[3] = {};
  uint16_t halves_back[3] = {};
  ASSERT_TRUE(reader->ReadTensor("i", {ints_back, DType::kI32, {3}}).ok());
  ASSERT_TRUE(reader->ReadTensor("h", {halves_back, DType::kBF16, {3, 1}}).ok());
  EXPECT_THAT(ints_back, ::testing::ElementsAreArray(ints));
  EXPECT_THAT(halves_back, ::testing::ElementsAreArray(halves));
  EXPECT_FALSE(reader->ReadTensor("i", {halves_back, DType::kBF16, {3}}).ok());
}

TEST(SafetensorsFile, HandlesStridedRows) {
  const TestFolder folder;
  std::vector<float> all(6 * 4 * 10);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<float>(i);
  const ConstTensorView whole(all.data(), DType::kF32, {6, 4, 10});
  const ConstTensorView part = whole.Slice(2, 3, 8).Slice(0, 1, 6);  // [5, 4, 5]
  const SafetensorsTensor tensors[] = {{"same", part, StoredType::kF32},
                                       {"wide", part, StoredType::kF64}};
  const std::string path = folder / "strided.safetensors";
  ASSERT_TRUE(WriteSafetensors(path, tensors).ok());
  const absl::StatusOr<SafetensorsReader> reader = SafetensorsReader::Open(path);
  ASSERT_TRUE(reader.ok()) << reader.status();
  for (const char* name : {"same", "wide"}) {
    std::vector<float> back(all.size(), -1.0f);
    const TensorView target(back.data(), DType::kF32, {6, 4, 10});
    ASSERT_TRUE(reader->ReadTensor(name, target.Slice(2, 3, 8).Slice(0, 1, 6)).ok());
    for (size_t i = 0; i < all.size(); ++i) {
      const bool inside = i / 40 >= 1 && i % 10 >= 3 && i % 10 < 8;
      ASSERT_EQ(back[i], inside ? all[i] : -1.0f) << name << " " << i;
    }
  }
}

TEST(SafetensorsFile, DamagedDataStillLoadsOrFails) {
  const TestFolder folder;
  const std::string path = folder / "damaged.safetensors";
  const std::string good = PythonFile();
  std::mt19937_64 random(3);
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = good;
    for (int k = 0; k < 1 + round % 3; ++k) {
      const size_t at = random() % bytes.size();
      bytes[at] = static_cast<char>(bytes[at] ^ 1 << random() % 8);
    }
    WriteBytes(path, bytes);
    const absl::StatusOr<SafetensorsReader> reader = SafetensorsReader::Open(path);
    if (!reader.ok()) continue;
    for (int64_t i = 0; i < reader->num_tensors(); ++i) {
      const SafetensorsEntry entry = reader->entry(i);
      double buffer[64];
      Shape shape;
      if (entry.shape.size() > Shape::kMaxRank) continue;
      for (int64_t size : entry.shape) shape.dims[static_cast<size_t>(shape.rank++)] = size;
      if (shape.num_elements() > 64) continue;
      (void)reader->ReadTensor(entry.name, {buffer, DType::kF64, shape});
    }
  }
}

TEST(SafetensorsFile, RefusesToWriteWhatItCouldNotRead) {
  const TestFolder folder;
  const std::string path = folder / "bad.safetensors";
  const float x = 1;
  const int64_t n = 1;
  const auto try_names = [&](const std::string& a, const std::string& b) {
    const SafetensorsTensor tensors[] = {{a, {&x, DType::kF32, {1}}, StoredType::kF32},
                                         {b, {&x, DType::kF32, {1}}, StoredType::kF32}};
    return WriteSafetensors(path, tensors).status();
  };
  EXPECT_FALSE(try_names("same", "same").ok());
  EXPECT_FALSE(try_names("a", "__metadata__").ok());
  EXPECT_FALSE(try_names("a", "b\n").ok());
  EXPECT_FALSE(try_names("a", "../b").ok());
  EXPECT_FALSE(try_names("a", "\xff").ok());
  EXPECT_FALSE(try_names("a", std::string(1025, 'b')).ok());
  const SafetensorsTensor wrong[] = {{"n", {&n, DType::kI64, {1}}, StoredType::kF32}};
  EXPECT_FALSE(WriteSafetensors(path, wrong).ok());
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  EXPECT_TRUE(try_names("a", "b").ok());
}

TEST(FloatConvert, RoundsToNearestEven) {
  struct Case {
    float value;
    uint16_t f16;
    uint16_t bf16;
  };
  const float inf = std::numeric_limits<float>::infinity();
  const Case cases[] = {
      {0.0f, 0, 0},
      {-0.0f, 0x8000, 0x8000},
      {1.0f, 0x3c00, 0x3f80},
      {1.0f + 0x1p-11f, 0x3c00, 0x3f80},      // tie to even
      {1.0f + 3 * 0x1p-11f, 0x3c02, 0x3f80},  // tie to even, up
      {1.0f + 0x1p-11f + 0x1p-23f, 0x3c01, 0x3f80},
      {1.0f + 0x1p-8f, 0x3c04, 0x3f80},  // tie to even in bfloat16
      {1.0f + 3 * 0x1p-8f, 0x3c0c, 0x3f82},
      {65504.0f, 0x7bff, 0x4780},
      {65519.99f, 0x7bff, 0x4780},
      {65520.0f, 0x7c00, 0x4780},
      {1e30f, 0x7c00, 0x714a},
      {-inf, 0xfc00, 0xff80},
      {3.4e38f, 0x7c00, 0x7f80},
      {0x1p-14f, 0x0400, 0x3880},
      {0x1p-24f, 0x0001, 0x3380},
      {0x1p-25f, 0x0000, 0x3300},
      {0x1.8p-25f, 0x0001, 0x3340},
      {0x1.ffcp-15f, 0x0400, 0x3880},  // a subnormal that rounds up to a normal
  };
  for (const Case& c : cases) {
    EXPECT_EQ(F16FromFloat(c.value), c.f16) << c.value;
    EXPECT_EQ(BF16FromFloat(c.value), c.bf16) << c.value;
  }
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float f16 = FloatFromF16(half), bf16 = FloatFromBF16(half);
    if (std::isnan(f16)) {
      ASSERT_TRUE(std::isnan(FloatFromF16(F16FromFloat(f16)))) << bits;
    } else {
      ASSERT_EQ(F16FromFloat(f16), half);
    }
    if (std::isnan(bf16)) {
      ASSERT_TRUE(std::isnan(FloatFromBF16(BF16FromFloat(bf16)))) << bits;
    } else {
      ASSERT_EQ(BF16FromFloat(bf16), half);
    }
  }
  EXPECT_TRUE(std::isnan(FloatFromBF16(BF16FromFloat(FloatOf(0x7f800001)))));
}

class SafetensorsFolderTest : public ::testing::Test {
 protected:
  // Writes a file with tensors of one float each, whose value is `value`.
  void WriteShard(const std::string& name, const std::vector<std::string>& tensors, float value) {
    std::vector<SafetensorsTensor> items;
    for (const std::string& tensor : tensors) {
      items.push_back({tensor, {&value, DType::kF32, {1}}, StoredType::kF32});
    }
    ASSERT_TRUE(WriteSafetensors(folder_ / name, items).ok());
  }
  void WriteIndex(const std::string& weight_map) {
    WriteBytes(folder_ / "model.safetensors.index.json",
               absl::StrCat(R"({"metadata":{"total_size":8},"weight_map":)", weight_map, "}"));
  }
  std::string OpenError() {
    const absl::Status status = SafetensorsFolder::Open(folder_.path()).status();
    if (!status.ok()) {
      EXPECT_EQ(ExitCodeOf(status), ExitCode::kCheckpoint);
    }
    return std::string(status.message());
  }

  TestFolder folder_;
};

TEST_F(SafetensorsFolderTest, ReadsOneFileOrShards) {
  EXPECT_THAT(OpenError(), HasSubstr("has neither model.safetensors nor"));
  WriteShard("s1.safetensors", {"a"}, 1);
  WriteShard("s2.safetensors", {"b", "c"}, 2);
  WriteIndex(R"({"a":"s1.safetensors","b":"s2.safetensors","c":"s2.safetensors"})");
  absl::StatusOr<SafetensorsFolder> model = SafetensorsFolder::Open(folder_.path());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(model->Names(), ElementsAre("a", "b", "c"));
  float value = 0;
  ASSERT_TRUE(model->ReadTensor("c", {&value, DType::kF32, {1}}).ok());
  EXPECT_EQ(value, 2);
  EXPECT_TRUE(absl::IsNotFound(model->ReadTensor("d", {&value, DType::kF32, {1}})));
  EXPECT_FALSE(model->Find("d").has_value());

  WriteShard("model.safetensors", {"only"}, 3);
  model = SafetensorsFolder::Open(folder_.path());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(model->Names(), ElementsAre("only"));
}

TEST_F(SafetensorsFolderTest, RefusesHostileIndices) {
  const TestFolder outside;
  WriteShard("s1.safetensors", {"a"}, 1);
  WriteShard("s2.safetensors", {"b"}, 2);
  WriteShard("s3.safetensors", {"a"}, 3);
  std::filesystem::copy_file(folder_ / "s1.safetensors", outside / "x.safetensors");
  std::filesystem::create_symlink(outside / "x.safetensors", folder_ / "link.safetensors");
  std::filesystem::create_directory(folder_ / "folder.safetensors");
  struct Case {
    std::string weight_map;
    std::string reason;
  };
  const Case cases[] = {
      {R"({"a":"../../etc/x.safetensors"})", "not a plain file name"},
      {absl::StrCat("{\"a\":\"", outside / "x.safetensors", "\"}"), "not a plain file name"},
      {R"({"a":".."})", "not a plain file name"},
      {R"({"a":""})", "not a plain file name"},
      {R"({"a":"s1.safetensors\u0000"})", "not a plain file name"},
      {R"({"a":"link.safetensors"})", "symbolic link"},
      {R"({"a":"folder.safetensors"})", "not a regular file"},
      {R"({"a":"s1.bin"})", "no .safetensors file"},
      {R"({"a":"missing.safetensors"})", "missing.safetensors"},
      {R"({"a":"s1.safetensors","b":"s1.safetensors"})", "\"b\" is not in s1.safetensors"},
      {R"({"a":"s1.safetensors","b":"s3.safetensors"})", "\"a\" is also in"},
      {R"({"a":"s1.safetensors","a":"s3.safetensors"})", "appears twice"},
      {R"({"a":1})", "names no file"},
      {"[]", "needs an object"},
      {"{", "byte"},
      {std::string(100, '['), "nested more than 64 deep"},
  };
  for (const Case& c : cases) {
    WriteIndex(c.weight_map);
    EXPECT_THAT(OpenError(), HasSubstr(c.reason)) << c.weight_map;
  }
  WriteBytes(folder_ / "model.safetensors.index.json", "[1]");
  EXPECT_THAT(OpenError(), HasSubstr("needs an object"));
  std::filesystem::create_symlink(outside / "x.safetensors", folder_ / "model.safetensors");
  EXPECT_THAT(OpenError(), HasSubstr("symbolic link"));
}

}  // namespace
}  // namespace evenkeel
