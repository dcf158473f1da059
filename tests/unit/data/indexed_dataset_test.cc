#include "runtime/data/indexed_dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "runtime/base/exit_code.h"
#include "runtime/base/philox.h"
#include "runtime/data/dataset_info.h"
#include "runtime/data/indexed_dataset_writer.h"
#include "tests/unit/data/temp_folder.h"

namespace evenkeel {
namespace {

using testing::HasSubstr;

using Documents = std::vector<std::vector<int32_t>>;

absl::Status WriteDataset(const std::string& prefix, int64_t vocab_size,
                          const Documents& documents) {
  auto writer = IndexedDatasetWriter::Create(prefix, vocab_size);
  if (!writer.ok()) return writer.status();
  for (const auto& document : documents) {
    if (absl::Status status = writer->AppendTokens(document); !status.ok()) return status;
    if (absl::Status status = writer->EndDocument(); !status.ok()) return status;
  }
  return writer->Finish({.tokenizer = "bytes", .eod_id = 9, .sources = {"a.txt"}, .num_files = 1});
}

absl::StatusOr<Documents> ReadDataset(const IndexedDataset& dataset) {
  Documents documents;
  for (int64_t i = 0; i < dataset.num_documents(); ++i) {
    std::vector<int32_t> tokens(static_cast<size_t>(dataset.document_length(i)));
    if (absl::Status status = dataset.ReadTokens(i, 0, absl::MakeSpan(tokens)); !status.ok()) {
      return status;
    }
    documents.push_back(tokens);
  }
  return documents;
}

template <typename T>
void Put(std::string* bytes, T value) {
  bytes->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// An index with any content, right or wrong.
struct RawIndex {
  std::string magic = std::string("MMIDIDX\0\0", 9);
  uint64_t version = 1;
  uint8_t type = 8;
  uint64_t num_sequences = 3;
  uint64_t num_boundaries = 3;
  std::vector<int32_t> lengths = {2, 1, 3};
  std::vector<int64_t> pointers = {0, 4, 6};
  std::vector<int64_t> boundaries = {0, 2, 3};
  std::string rest;

  std::string Bytes() const {
    std::string bytes = magic;
    Put(&bytes, version);
    Put(&bytes, type);
    Put(&bytes, num_sequences);
    Put(&bytes, num_boundaries);
    for (const int32_t x : lengths) Put(&bytes, x);
    for (const int64_t x : pointers) Put(&bytes, x);
    for (const int64_t x : boundaries) Put(&bytes, x);
    return bytes + rest;
  }
};

std::string U16Tokens(const std::vector<int>& tokens) {
  std::string bytes;
  for (const int token : tokens) Put(&bytes, static_cast<uint16_t>(token));
  return bytes;
}

TEST(IndexedDatasetWriter, WritesMegatronsBytes) {
  const TempFolder folder;
  ASSERT_TRUE(WriteDataset(folder.Path("d"), 300, {{1, 258, 9}, {}, {7, 9}}).ok());
  const std::string idx(
      "MMIDIDX\0\0"                                                        // magic
      "\1\0\0\0\0\0\0\0"                                                   // version
      "\10"                                                                // u16
      "\3\0\0\0\0\0\0\0"                                                   // sequences
      "\4\0\0\0\0\0\0\0"                                                   // documents + 1
      "\3\0\0\0\0\0\0\0\2\0\0\0"                                           // lengths
      "\0\0\0\0\0\0\0\0\6\0\0\0\0\0\0\0\6\0\0\0\0\0\0\0"                   // byte offsets
      "\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0",  // boundaries
      34 + 12 * 3 + 8 * 4);
  EXPECT_EQ(folder.Read("d.idx"), idx);
  EXPECT_EQ(folder.Read("d.bin"), std::string("\1\0\2\1\11\0\7\0\11\0", 10));
  EXPECT_EQ(folder.NumEntries(), 3) << "a temporary file was left";
}

TEST(IndexedDatasetWriter, ChoosesTheTypeMegatronWould) {
  for (const auto& [vocab, code, bytes] : std::vector<std::tuple<int64_t, char, size_t>>{
           {65499, 8, 4}, {65500, 4, 8}, {200000, 4, 8}}) {
    const TempFolder folder;
    const int32_t top = static_cast<int32_t>(vocab) - 1;
    ASSERT_TRUE(WriteDataset(folder.Path("d"), vocab, {{0, top}}).ok());
    EXPECT_EQ(folder.Read("d.idx")[17], code) << vocab;
    EXPECT_EQ(folder.Read("d.bin").size(), bytes) << vocab;
    const auto dataset = IndexedDataset::Open(folder.Path("d"), vocab);
    ASSERT_TRUE(dataset.ok()) << dataset.status();
    EXPECT_EQ(*ReadDataset(*dataset), Documents({{0, top}}));
  }
}

TEST(IndexedDatasetWriter, RoundTripsManyDocumentsInParts) {
  const TempFolder folder;
  const Philox random(7, 1);
  auto writer = IndexedDatasetWriter::Create(folder.Path("sub/folder/d"), 1000);
  ASSERT_TRUE(writer.ok()) << writer.status();
  Documents documents;
  uint64_t drawn = 0;
  for (int i = 0; i < 20000; ++i) {  // more than one block of pointers in Finish
    std::vector<int32_t> document(i == 77 ? 40000 : random.Bits(drawn++) % 5);
    for (int32_t& token : document) token = static_cast<int32_t>(random.Bits(drawn++) % 1000);
    const size_t cut = document.size() / 3;
    ASSERT_TRUE(writer->AppendTokens(absl::MakeConstSpan(document).first(cut)).ok());
    ASSERT_TRUE(writer->AppendTokens(absl::MakeConstSpan(document).subspan(cut)).ok());
    ASSERT_TRUE(writer->EndDocument().ok());
    documents.push_back(document);
  }
  ASSERT_TRUE(writer->Finish(DatasetInfo()).ok());
  const auto dataset = IndexedDataset::Open(folder.Path("sub/folder/d"), 1000);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ(*ReadDataset(*dataset), documents);
  EXPECT_EQ(dataset->total_tokens(), writer->num_tokens());
  EXPECT_TRUE(dataset->CheckAllTokens().ok());
  std::vector<int32_t> part(20001);  // more than one block of a read
  ASSERT_TRUE(dataset->ReadTokens(77, 19000 - 1, absl::MakeSpan(part)).ok());
  EXPECT_TRUE(std::equal(part.begin(), part.end(), documents[77].begin() + 18999));
}

TEST(IndexedDatasetWriter, LeavesNothingWithoutFinishAndReplacesWithIt) {
  const TempFolder folder;
  {
    auto writer = IndexedDatasetWriter::Create(folder.Path("d"), 10);
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE(writer->AppendTokens({1, 2}).ok());
    EXPECT_FALSE(writer->AppendTokens({10}).ok());
    EXPECT_FALSE(writer->AppendTokens({-1}).ok());
  }
  EXPECT_EQ(folder.NumEntries(), 0);
  ASSERT_TRUE(WriteDataset(folder.Path("d"), 10, {{1, 2}}).ok());
  ASSERT_TRUE(WriteDataset(folder.Path("d"), 10, {{3}}).ok());
  EXPECT_EQ(*ReadDataset(*IndexedDataset::Open(folder.Path("d"))), Documents({{3}}));
  EXPECT_EQ(folder.NumEntries(), 3);
}

TEST(IndexedDatasetWriter, ReportsAFolderThatCannotBeWritten) {
  const TempFolder folder;
  const std::string file = folder.Write("file", "x");
  const auto writer = IndexedDatasetWriter::Create(file + "/d", 10);
  ASSERT_FALSE(writer.ok());
  EXPECT_EQ(ExitCodeOf(writer.status()), ExitCode::kData);
}

TEST(DatasetInfo, RoundTripsAndRefusesDamage) {
  const TempFolder folder;
  ASSERT_TRUE(WriteDataset(folder.Path("d"), 10, {{1, 9}, {9}}).ok());
  const auto info = ReadDatasetInfo(folder.Path("d"));
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(*info, (DatasetInfo{.tokenizer = "bytes",
                                .vocab_size = 10,
                                .eod_id = 9,
                                .sources = {"a.txt"},
                                .num_files = 1,
                                .num_documents = 2,
                                .num_tokens = 3}));
  EXPECT_TRUE(absl::IsNotFound(ReadDatasetInfo(folder.Path("none")).status()));
  const std::string text = folder.Read("d.dataset.json");
  for (size_t size = 0; size + 2 < text.size(); ++size) {
    folder.Write("t.dataset.json", text.substr(0, size));
    EXPECT_EQ(ExitCodeOf(ReadDatasetInfo(folder.Path("t")).status()), ExitCode::kData) << size;
  }
  for (const auto& [from, to] : std::vector<std::pair<std::string, std::string>>{
           {"\"version\": 1", "\"version\": 2"},
           {"\"vocab_size\": 10", "\"vocab_size\": 1e3"},
           {"\"vocab_size\": 10", "\"vocab_size\": 18446744073709551615"},
           {"\"vocab_size\": 10", "\"vocab_size\": 9"},
           {"\"num_tokens\": 3", "\"num_tokens\": -3"},
           {"\"bytes\"", "null"},
           {"\"a.txt\"", "1"}}) {
    std::string damaged = text;
    ASSERT_NE(damaged.find(from), std::string::npos) << from;
    damaged.replace(damaged.find(from), from.size(), to);
    folder.Write("t.dataset.json", damaged);
    EXPECT_FALSE(ReadDatasetInfo(folder.Path("t")).ok()) << to;
  }
}

TEST(IndexedDataset, JoinsTheSequencesOfADocument) {
  const TempFolder folder;
  folder.Write("d.bin", U16Tokens({1, 2, 3, 4, 5, 6}));
  for (const char* modes : {"", "abc"}) {
    RawIndex index;
    index.rest = modes;
    folder.Write("d.idx", index.Bytes());
    const auto dataset = IndexedDataset::Open(folder.Path("d"));
    ASSERT_TRUE(dataset.ok()) << dataset.status();
    EXPECT_EQ(*ReadDataset(*dataset), Documents({{1, 2, 3}, {4, 5, 6}}));
    EXPECT_EQ(dataset->document_lengths(), (std::vector<int64_t>{3, 3}));
  }
}

TEST(IndexedDataset, ReadsEveryTokenType) {
  const TempFolder folder;
  RawIndex index;
  index.num_sequences = 1;
  index.num_boundaries = 2;
  index.lengths = {3};
  index.pointers = {0};
  index.boundaries = {0, 1};
  const std::vector<int32_t> tokens = {0, 100, 127};
  for (const int type : {1, 2, 3, 4, 5, 8}) {
    std::string bin;
    for (const int32_t token : tokens) {
      if (type <= 2) Put(&bin, static_cast<int8_t>(token));
      if (type == 3 || type == 8) Put(&bin, static_cast<int16_t>(token));
      if (type == 4) Put(&bin, token);
      if (type == 5) Put(&bin, int64_t{token});
    }
    index.type = static_cast<uint8_t>(type);
    folder.Write("d.idx", index.Bytes());
    folder.Write("d.bin", bin);
    const auto dataset = IndexedDataset::Open(folder.Path("d"), 128);
    ASSERT_TRUE(dataset.ok()) << dataset.status();
    EXPECT_EQ(*ReadDataset(*dataset), Documents({tokens})) << type;
    EXPECT_FALSE(ReadDataset(*IndexedDataset::Open(folder.Path("d"), 127)).ok()) << type;
  }
}

TEST(IndexedDataset, NamesATokenOutsideTheVocabulary) {
  const TempFolder folder;
  std::string bin;
  for (const int64_t token : {1, 2, 3, 4}) Put(&bin, token);
  Put(&bin, (int64_t{1} << 32) + 5);  // looks like 5 to who keeps 32 bits of it
  Put(&bin, int64_t{-1});
  RawIndex index;
  index.type = 5;
  index.pointers = {0, 16, 24};
  folder.Write("d.idx", index.Bytes());
  folder.Write("d.bin", bin);
  const auto dataset = IndexedDataset::Open(folder.Path("d"), 100);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  std::vector<int32_t> two(2);
  for (const int64_t offset : {0, 1}) {
    const absl::Status status = dataset->ReadTokens(1, offset, absl::MakeSpan(two));
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kData);
    EXPECT_THAT(std::string(status.message()), HasSubstr("d.bin: document 1, position 1:"));
  }
  std::vector<int32_t> one(1);
  EXPECT_FALSE(dataset->ReadTokens(1, 2, absl::MakeSpan(one)).ok());
  EXPECT_TRUE(dataset->ReadTokens(1, 0, absl::MakeSpan(one)).ok());
  EXPECT_TRUE(dataset->ReadTokens(1, 3, {}).ok());
  EXPECT_FALSE(dataset->CheckAllTokens().ok());
}

TEST(IndexedDataset, RefusesHostileIndices) {
  const TempFolder folder;
  folder.Write("d.bin", U16Tokens({1, 2, 3, 4, 5, 6}));
  folder.Write("d.idx", RawIndex().Bytes());
  ASSERT_TRUE(IndexedDataset::Open(folder.Path("d")).ok());
  const auto changed = [](auto change) {
    RawIndex index;
    change(index);
    return index.Bytes();
  };
  constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();
  constexpr int64_t kLow = std::numeric_limits<int64_t>::min();
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"not a Megatron index", ""},
      {"not a Megatron index", changed([](auto& x) { x.magic[3] = 'x'; })},
      {"version 2", changed([](auto& x) { x.version = 2; })},
      {"version", changed([](auto& x) { x.version = uint64_t{1} << 56; })},  // big-endian 1
      {"type 0", changed([](auto& x) { x.type = 0; })},
      {"type 9", changed([](auto& x) { x.type = 9; })},
      {"floating-point", changed([](auto& x) { x.type = 6; })},
      {"floating-point", changed([](auto& x) { x.type = 7; })},
      {"does not fit", changed([](auto& x) { x.num_sequences = kMax; })},
      {"does not fit", changed([](auto& x) { x.num_sequences = kMax / 12 + 1; })},
      {"does not fit", changed([](auto& x) { x.num_sequences = 3 + (uint64_t{1} << 62); })},
      {"does not fit", changed([](auto& x) { x.num_boundaries = 3 + (uint64_t{1} << 61); })},
      {"does not fit", changed([](auto& x) { x.num_boundaries = kMax; })},
      {"does not fit", changed([](auto& x) { x.num_boundaries = kMax / 8 + 1 + 3; })},
      {"does not fit", changed([](auto& x) { x.num_boundaries = uint64_t{1} << 61; })},
      {"does not fit", changed([](auto& x) { x.num_boundaries = 2; })},
      {"does not fit", changed([](auto& x) { x.rest = "x"; })},
      {"does not fit", changed([](auto& x) { x.rest = "abcd"; })},
      {"no document boundaries", changed([](auto& x) {
         x.num_sequences = x.num_boundaries = 0;
         x.lengths = {};
         x.pointers = x.boundaries = {};
       })},
      {"length -1", changed([](auto& x) { x.lengths[1] = -1; })},
      {"beyond the .bin", changed([](auto& x) { x.lengths[0] = 0x7FFFFFFF; })},
      {"beyond the .bin", changed([](auto& x) { x.lengths[2] = 4; })},
      {"describes 10 bytes", changed([](auto& x) { x.lengths[2] = 2; })},
      {"start at byte 2", changed([](auto& x) { x.pointers[0] = 2; })},
      {"start at byte 5", changed([](auto& x) { x.pointers[1] = 5; })},
      {"start at byte -", changed([](auto& x) { x.pointers[2] = kLow; })},
      {"start at byte 1152921504606846976", changed([](auto& x) { x.pointers[1] = 1LL << 60; })},
      {"boundary 0 is 1", changed([](auto& x) { x.boundaries[0] = 1; })},
      {"boundary 1 is 4", changed([](auto& x) { x.boundaries[1] = 4; })},
      {"boundary 1 is -1", changed([](auto& x) { x.boundaries[1] = -1; })},
      {"boundary 2 is 2", changed([](auto& x) { x.boundaries[2] = 2; })},
      {"boundary 1 is", changed([](auto& x) { x.boundaries[1] = kLow; })},
      {"boundary 0 is 0", changed([](auto& x) {
         x.num_boundaries = 1;
         x.boundaries = {0};
       })},
  };
  for (const auto& [message, bytes] : cases) {
    folder.Write("d.idx", bytes);
    const auto dataset = IndexedDataset::Open(folder.Path("d"));
    ASSERT_FALSE(dataset.ok()) << message;
    EXPECT_EQ(ExitCodeOf(dataset.status()), ExitCode::kData);
    EXPECT_THAT(std::string(dataset.status().message()), HasSubstr(message));
    EXPECT_THAT(std::string(dataset.status().message()), HasSubstr("d.idx: "));
  }
}

TEST(IndexedDataset, SaysWhatThePrefixIsOfAFileName) {
  const TempFolder folder;
  const std::string prefix = folder.Path("a");
  ASSERT_TRUE(WriteDataset(prefix, 10, {{1, 2}, {3}}).ok());
  for (const char* end : {".bin", ".idx"}) {
    const auto dataset = IndexedDataset::Open(prefix + end, 10);
    EXPECT_EQ(dataset.status().message(),
              prefix + end + ": a data set goes by the prefix of its files: " + prefix);
    EXPECT_EQ(ExitCodeOf(dataset.status()), ExitCode::kData);
  }
  // But a name may end so.
  ASSERT_TRUE(WriteDataset(prefix + ".bin", 10, {{1, 2}, {3}}).ok());
  EXPECT_TRUE(IndexedDataset::Open(prefix + ".bin", 10).ok());
}

TEST(IndexedDataset, RefusesADataSetWithoutTokens) {
  const TempFolder folder;
  ASSERT_TRUE(WriteDataset(folder.Path("none"), 10, {}).ok());
  ASSERT_TRUE(WriteDataset(folder.Path("empty"), 10, {{}, {}}).ok());
  for (const char* name : {"none", "empty", "missing"}) {
    EXPECT_EQ(ExitCodeOf(IndexedDataset::Open(folder.Path(name)).status()), ExitCode::kData);
  }
  std::filesystem::create_directory(folder.Path("dir.idx"));
  EXPECT_FALSE(IndexedDataset::Open(folder.Path("dir")).ok());
}

TEST(IndexedDataset, RefusesEveryTruncationOfEitherFile) {
  const TempFolder folder;
  ASSERT_TRUE(WriteDataset(folder.Path("d"), 300, {{1, 2, 9}, {3, 9}, {4, 5, 6, 9}}).ok());
  const std::string idx = folder.Read("d.idx"), bin = folder.Read("d.bin");
  for (size_t size = 0; size < idx.size(); ++size) {
    folder.Write("d.idx", idx.substr(0, size));
    EXPECT_FALSE(IndexedDataset::Open(folder.Path("d")).ok()) << size;
  }
  folder.Write("d.idx", idx);
  for (size_t size = 0; size < bin.size(); ++size) {
    folder.Write("d.bin", bin.substr(0, size));
    EXPECT_FALSE(IndexedDataset::Open(folder.Path("d")).ok()) << size;
  }
  folder.Write("d.bin", bin + "x");
  EXPECT_FALSE(IndexedDataset::Open(folder.Path("d")).ok());
}

TEST(IndexedDataset, ReportsATruncationWhileOpen) {
  const TempFolder folder;
  std::vector<int32_t> document(30000, 5);
  ASSERT_TRUE(WriteDataset(folder.Path("d"), 300, {document}).ok());
  const auto dataset = IndexedDataset::Open(folder.Path("d"));
  ASSERT_TRUE(dataset.ok());
  std::filesystem::resize_file(folder.Path("d.bin"), 4096);
  const absl::Status status = dataset->ReadTokens(0, 0, absl::MakeSpan(document));
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kData);
  EXPECT_THAT(std::string(status.message()), HasSubstr("d.bin: ends at byte 4096"));
}

TEST(IndexedDataset, SurvivesRandomDamage) {
  const TempFolder folder;
  ASSERT_TRUE(WriteDataset(folder.Path("d"), 300, {{1, 2, 9}, {3, 9}, {}, {4, 5, 6, 9}}).ok());
  const std::string idx = folder.Read("d.idx"), bin = folder.Read("d.bin");
  const Philox random(3, 3);
  uint64_t drawn = 0;
  std::string on_disk_idx = idx, on_disk_bin = bin;
  int opened = 0;
  for (int round = 0; round < 600; ++round) {
    std::string damaged_idx = idx, damaged_bin = bin;
    for (uint64_t n = 1 + random.Bits(drawn++) % 3; n > 0; --n) {
      const uint64_t at = random.Bits(drawn++) % (idx.size() + bin.size());
      const char value = static_cast<char>(random.Bits(drawn++));
      (at < idx.size() ? damaged_idx[at] : damaged_bin[at - idx.size()]) = value;
    }
    if (damaged_idx != on_disk_idx) folder.Write("d.idx", on_disk_idx = damaged_idx);
    if (damaged_bin != on_disk_bin) folder.Write("d.bin", on_disk_bin = damaged_bin);
    const auto dataset = IndexedDataset::Open(folder.Path("d"), 300);
    if (!dataset.ok()) {
      EXPECT_EQ(ExitCodeOf(dataset.status()), ExitCode::kData);
      continue;
    }
    ++opened;
    int64_t total = 0;
    for (const int64_t length : dataset->document_lengths()) {
      ASSERT_GE(length, 0);
      total += length;
    }
    EXPECT_EQ(total, dataset->total_tokens());
    if (const auto documents = ReadDataset(*dataset); documents.ok()) {
      for (const auto& document : *documents) {
        for (const int32_t token : document) ASSERT_TRUE(token >= 0 && token < 300);
      }
    }
  }
  EXPECT_GT(opened, 10);  // damage of tokens alone cannot be seen by the index
}

TEST(IndexedDataset, FingerprintChangesWithIndexAndTokens) {
  const TempFolder folder;
  ASSERT_TRUE(WriteDataset(folder.Path("a"), 300, {{1, 2, 9}, {3, 9}}).ok());
  ASSERT_TRUE(WriteDataset(folder.Path("same"), 300, {{1, 2, 9}, {3, 9}}).ok());
  ASSERT_TRUE(WriteDataset(folder.Path("cut"), 300, {{1, 2}, {9, 3, 9}}).ok());
  ASSERT_TRUE(WriteDataset(folder.Path("tokens"), 300, {{1, 2, 9}, {4, 9}}).ok());
  const auto fingerprint = [&](const std::string& name) {
    return IndexedDataset::Open(folder.Path(name))->fingerprint();
  };
  EXPECT_EQ(fingerprint("a"), fingerprint("same"));
  EXPECT_NE(fingerprint("a"), fingerprint("cut"));
  EXPECT_NE(fingerprint("a"), fingerprint("tokens"));
}

TEST(IndexedDataset, ServesSeveralThreads) {
  const TempFolder folder;
  Documents documents;
  for (int i = 0; i < 50; ++i) documents.push_back(std::vector<int32_t>(100, i));
  ASSERT_TRUE(WriteDataset(folder.Path("d"), 300, documents).ok());
  IndexedDataset moved = *IndexedDataset::Open(folder.Path("d"));
  const IndexedDataset dataset = std::move(moved);
  std::vector<Documents> seen(4);
  std::vector<std::thread> threads;
  for (auto& out : seen) threads.emplace_back([&] { out = *ReadDataset(dataset); });
  for (auto& thread : threads) thread.join();
  for (const auto& out : seen) EXPECT_EQ(out, documents);
}

}  // namespace
}  // namespace evenkeel
