#include "runtime/data/byte_tokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/base/philox.h"
#include "runtime/data/utf8.h"

namespace evenkeel {
namespace {

#define EK_FFFD "\xEF\xBF\xBD"

std::string Decode(const std::string& bytes) {
  return DecodeBytes(EncodeBytes(bytes));
}

TEST(ByteTokenizer, EncodesEveryByteAsItself) {
  std::string all;
  for (int i = 0; i < 256; ++i) all.push_back(static_cast<char>(i));
  const std::vector<int32_t> tokens = EncodeBytes(all);
  ASSERT_EQ(tokens.size(), 256u);
  for (int32_t i = 0; i < 256; ++i) EXPECT_EQ(tokens[static_cast<size_t>(i)], i);
  EXPECT_TRUE(EncodeBytes("").empty());
}

TEST(ByteTokenizer, RoundTripsEveryCharacter) {
  std::string text;
  for (uint32_t c = 1; c <= 0x10FFFF; c += c < 0x3000 ? 1 : 37) {
    if (c >= 0xD800 && c < 0xE000) continue;
    if (c < 0x80) {
      text += static_cast<char>(c);
    } else if (c < 0x800) {
      text += static_cast<char>(0xC0 | c >> 6);
      text += static_cast<char>(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
      text += static_cast<char>(0xE0 | c >> 12);
      text += static_cast<char>(0x80 | (c >> 6 & 0x3F));
      text += static_cast<char>(0x80 | (c & 0x3F));
    } else {
      text += static_cast<char>(0xF0 | c >> 18);
      text += static_cast<char>(0x80 | (c >> 12 & 0x3F));
      text += static_cast<char>(0x80 | (c >> 6 & 0x3F));
      text += static_cast<char>(0x80 | (c & 0x3F));
    }
  }
  EXPECT_EQ(FindInvalidUtf8(text), -1);
  EXPECT_EQ(Decode(text), text);
}

struct IllFormed {
  std::string bytes, text;
  int64_t first_bad;
};

// The texts are those of the WHATWG decoder (Python: bytes.decode("utf-8", "replace")).
TEST(ByteTokenizer, ReplacesIllFormedBytes) {
  const std::vector<IllFormed> cases = {
      {"a\x80z", "a" EK_FFFD "z", 1},
      {"\xC0\x80", EK_FFFD EK_FFFD, 0},              // overlong NUL
      {"\xC1\xBF", EK_FFFD EK_FFFD, 0},              // overlong
      {"\xC3(", EK_FFFD "(", 0},                     // second byte missing
      {"\xE0\x80\x80", EK_FFFD EK_FFFD EK_FFFD, 0},  // overlong
      {"\xE2\x82", EK_FFFD, 0},                      // cut at the end
      {"\xE2\x82"
       "A",
       EK_FFFD "A", 0},                              // cut in the middle
      {"\xED\xA0\x80", EK_FFFD EK_FFFD EK_FFFD, 0},  // surrogate
      {"\xF0\x9F\x98", EK_FFFD, 0},
      {"\xF0\x9F\xF0\x9F\x98\x80", EK_FFFD "\xF0\x9F\x98\x80", 0},
      {"\xF0\x80\x80\x80", EK_FFFD EK_FFFD EK_FFFD EK_FFFD, 0},  // overlong
      {"\xF4\x90\x80\x80", EK_FFFD EK_FFFD EK_FFFD EK_FFFD, 0},  // above U+10FFFF
      {"\xF5\xFF", EK_FFFD EK_FFFD, 0},
      {"12345678\xC3", "12345678" EK_FFFD, 8},
      {"1234567\xC3\xA9"
       "89\xFF",
       "1234567\xC3\xA9"
       "89" EK_FFFD,
       11},
  };
  for (const IllFormed& c : cases) {
    EXPECT_EQ(Decode(c.bytes), c.text) << testing::PrintToString(c.bytes);
    EXPECT_EQ(FindInvalidUtf8(c.bytes), c.first_bad) << testing::PrintToString(c.bytes);
  }
}

TEST(ByteTokenizer, StreamsWholeCharactersOnly) {
  ByteDecoder decoder;
  const std::string euro = "\xE2\x82\xAC";
  EXPECT_EQ(decoder.Push(0xE2), "");
  EXPECT_EQ(decoder.Push(0x82), "");
  EXPECT_EQ(decoder.Push(0xAC), euro);
  EXPECT_EQ(decoder.Push('x'), "x");
  EXPECT_EQ(decoder.Push(0xE2), "");
  EXPECT_EQ(decoder.Push(kByteEod), EK_FFFD);
  EXPECT_EQ(decoder.Push(kByteEod), "");
  EXPECT_EQ(decoder.Push(300), EK_FFFD);
  EXPECT_EQ(decoder.Push(-1), EK_FFFD);
  EXPECT_EQ(decoder.Push(0xF0), "");
  EXPECT_EQ(decoder.Flush(), EK_FFFD);
  EXPECT_EQ(decoder.Flush(), "");
}

TEST(ByteTokenizer, RandomBytesDecodeToWellFormedText) {
  const Philox random(1, 2);
  uint64_t drawn = 0;
  for (int round = 0; round < 2000; ++round) {
    std::string bytes(random.Bits(drawn++) % 40, '\0');
    for (char& byte : bytes) {
      // Mostly bytes above 0x7F, so that sequences of all kinds come up.
      const uint64_t bits = random.Bits(drawn++);
      byte = static_cast<char>(bits % 8 == 0 ? bits >> 8 & 0x7F : 0x80 | (bits >> 8 & 0x7F));
    }
    EXPECT_EQ(DecodeBytes(EncodeBytes(bytes)).empty(), bytes.empty());
    const std::string text = Decode(bytes);
    EXPECT_EQ(FindInvalidUtf8(text), -1);
    EXPECT_EQ(Decode(text), text);
    EXPECT_EQ(text == bytes, FindInvalidUtf8(bytes) == -1) << testing::PrintToString(bytes);
  }
}

}  // namespace
}  // namespace evenkeel
