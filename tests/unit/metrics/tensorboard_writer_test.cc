#include "runtime/metrics/tensorboard_writer.h"

#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/metrics/crc32c.h"
#include "tests/unit/metrics/temp_folder.h"

namespace evenkeel {
namespace {

// Vectors of RFC 3720, B.4, and the customary check value.
TEST(Crc32c, MatchesKnownVectors) {
  EXPECT_EQ(Crc32c(""), 0u);
  EXPECT_EQ(Crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(Crc32c(std::string(32, '\xFF')), 0x62A8AB43u);
  std::string ascending;
  for (char c = 0; c < 32; ++c) ascending += c;
  EXPECT_EQ(Crc32c(ascending), 0x46DD794Eu);
}

// The checksum bit by bit, not sharing the table with the code under test.
uint32_t BitwiseMaskedCrc(const std::string& bytes) {
  uint32_t crc = 0xFFFFFFFFu;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0x82F63B78u : crc >> 1;
  }
  crc = ~crc;
  return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

// One field of a protobuf message: number, and its value as an integer or as bytes.
struct Field {
  uint64_t number = 0;
  uint64_t integer = 0;
  std::string bytes;
};

struct Reader {
  const std::string& data;
  size_t at = 0;

  uint64_t Fixed(size_t size) {
    EXPECT_LE(at + size, data.size());
    uint64_t value = 0;
    std::memcpy(&value, data.data() + at, size);
    at += size;
    return value;
  }
  uint64_t Varint() {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const uint64_t byte = Fixed(1);
      value |= (byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
  }
  std::string Bytes(uint64_t size) {
    EXPECT_LE(at + size, data.size());
    at += size;
    return data.substr(at - size, size);
  }
};

std::vector<Field> Decode(const std::string& message) {
  Reader reader{message};
  std::vector<Field> fields;
  while (reader.at < message.size()) {
    const uint64_t key = reader.Varint();
    Field field{key >> 3, 0, ""};
    switch (key & 7) {
      case 0:
        field.integer = reader.Varint();
        break;
      case 1:
        field.integer = reader.Fixed(8);
        break;
      case 2:
        field.bytes = reader.Bytes(reader.Varint());
        break;
      case 5:
        field.integer = reader.Fixed(4);
        break;
      default:
        ADD_FAILURE() << "wire type " << (key & 7);
        return fields;
    }
    fields.push_back(field);
  }
  return fields;
}

// The messages of an event file, checksums verified.
std::vector<std::vector<Field>> DecodeFile(const std::string& path) {
  const std::string file = ReadAll(path);
  Reader reader{file};
  std::vector<std::vector<Field>> events;
  while (reader.at < file.size()) {
    const std::string head = file.substr(reader.at, 8);
    const uint64_t length = reader.Fixed(8);
    EXPECT_EQ(reader.Fixed(4), BitwiseMaskedCrc(head));
    const std::string data = reader.Bytes(length);
    EXPECT_EQ(reader.Fixed(4), BitwiseMaskedCrc(data));
    events.push_back(Decode(data));
  }
  return events;
}

double AsDouble(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, 8);
  return value;
}

float AsFloat(uint64_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

TEST(TensorBoardWriter, WritesRecordsThatDecode) {
  const TempFolder folder;
  auto writer = TensorBoardWriter::Open(folder.path());
  ASSERT_TRUE(writer.ok()) << writer.status();
  EXPECT_THAT(writer->path(), ::testing::ContainsRegex(
                                  "/events[.]out[.]tfevents[.][0-9]{10}[.][^/]+[.][0-9]+[.]0$"));
  const std::string long_tag(300, 'x');
  const std::vector<std::tuple<std::string, int64_t, double>> scalars = {
      {"loss", 1, 2.5},
      {"loss/\"<\xC3\xA9", int64_t{1} << 40, -1e-30},
      {long_tag, 0, 1e300},
      {"", 127, 0.0},
  };
  for (const auto& [tag, step, value] : scalars) writer->Scalar(tag, step, value);
  writer->Scalar("\xFF", 3, NAN);

  const auto events = DecodeFile(writer->path());
  ASSERT_EQ(events.size(), 1 + scalars.size() + 1);
  EXPECT_EQ(events[0][0].number, 1u);
  EXPECT_GT(AsDouble(events[0][0].integer), 1.6e9);
  EXPECT_EQ(events[0][1].number, 3u);
  EXPECT_EQ(events[0][1].bytes, "brain.Event:2");
  for (size_t i = 1; i < events.size(); ++i) {
    ASSERT_EQ(events[i].size(), 3u);
    EXPECT_EQ(events[i][1].number, 2u);
    EXPECT_EQ(events[i][2].number, 5u);
    const auto summary = Decode(events[i][2].bytes);
    ASSERT_EQ(summary.size(), 1u);
    EXPECT_EQ(summary[0].number, 1u);
    const auto value = Decode(summary[0].bytes);
    ASSERT_EQ(value.size(), 2u);
    EXPECT_EQ(value[0].number, 1u);
    EXPECT_EQ(value[1].number, 2u);
    if (i <= scalars.size()) {
      const auto& [tag, step, expected] = scalars[i - 1];
      EXPECT_EQ(events[i][1].integer, static_cast<uint64_t>(step));
      EXPECT_EQ(value[0].bytes, tag);
      EXPECT_EQ(AsFloat(value[1].integer), static_cast<float>(expected));
    } else {
      EXPECT_EQ(value[0].bytes, "\xEF\xBF\xBD");
      EXPECT_TRUE(std::isnan(AsFloat(value[1].integer)));
    }
  }
}

TEST(TensorBoardWriter, ResumeStartsASessionAfterTheRestoredStep) {
  const TempFolder folder;
  auto first = TensorBoardWriter::Open(folder.path());
  auto second = TensorBoardWriter::Open(folder.path());
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_NE(first->path(), second->path());
  second->Resume(300);
  const auto events = DecodeFile(second->path());
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[1][1].integer, 301u);
  EXPECT_EQ(events[1][2].number, 7u);
  const auto session = Decode(events[1][2].bytes);
  ASSERT_EQ(session.size(), 1u);
  EXPECT_EQ(session[0].number, 1u);
  EXPECT_EQ(session[0].integer, 1u);
}

TEST(TensorBoardWriter, ReportsAMissingFolder) {
  EXPECT_FALSE(TensorBoardWriter::Open("/nonexistent").ok());
}

}  // namespace
}  // namespace evenkeel
