#include "runtime/data/dataset_build.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "runtime/base/exit_code.h"
#include "runtime/data/byte_tokenizer.h"
#include "runtime/data/dataset_info.h"
#include "runtime/data/indexed_dataset.h"
#include "tests/unit/data/temp_folder.h"

namespace evenkeel {
namespace {

using testing::HasSubstr;

// Returns the texts of a data set; fails the test if one does not end with kByteEod.
std::vector<std::string> Texts(const std::string& prefix) {
  const auto dataset = IndexedDataset::Open(prefix, kByteVocabSize);
  EXPECT_TRUE(dataset.ok()) << dataset.status();
  std::vector<std::string> texts;
  for (int64_t i = 0; dataset.ok() && i < dataset->num_documents(); ++i) {
    std::vector<int32_t> tokens(static_cast<size_t>(dataset->document_length(i)));
    EXPECT_TRUE(dataset->ReadTokens(i, 0, absl::MakeSpan(tokens)).ok());
    EXPECT_EQ(tokens.back(), kByteEod);
    tokens.pop_back();
    texts.push_back(DecodeBytes(tokens));
  }
  return texts;
}

TEST(DatasetBuild, BuildsFromFilesAndLines) {
  const TempFolder folder;
  folder.Write("in/a.txt", "first");
  folder.Write("in/b.txt", "");
  folder.Write("in/c.jsonl",
               "{\"t\": \"second\"}\n{\"t\": 3}\n{\"t\": \"x\"}\n{\"t\": \"longest one\"}");
  folder.Write("in/d.txt", std::string(200000, 'y'));  // encoded in several parts
  std::vector<DatasetBuildProgress> reports;
  const auto summary = BuildDataset({.inputs = {folder.Path("in/**")},
                                     .jsonl_key = "t",
                                     .output_prefix = folder.Path("out/d"),
                                     .min_tokens = 6,
                                     .max_tokens = 200001,
                                     .skip_bad = 1},
                                    [&](const auto& progress) { reports.push_back(progress); });
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(Texts(folder.Path("out/d")),
            (std::vector<std::string>{"first", "second", "longest one", std::string(200000, 'y')}));
  EXPECT_EQ(summary->num_files, 4);
  EXPECT_EQ(summary->train_documents, 4);
  EXPECT_EQ(summary->train_tokens, 6 + 7 + 12 + 200001);
  EXPECT_EQ(summary->empty_documents, 1);
  EXPECT_EQ(summary->bad_documents, 1);
  EXPECT_EQ(summary->short_documents, 1);
  EXPECT_EQ(summary->long_documents, 0);
  ASSERT_FALSE(reports.empty());
  EXPECT_EQ(reports.back().bytes_read, reports.back().bytes_total);
  EXPECT_EQ(reports.back().num_tokens, summary->train_tokens);
  const auto info = ReadDatasetInfo(folder.Path("out/d"));
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->tokenizer, "bytes");
  EXPECT_EQ(info->vocab_size, 257);
  EXPECT_EQ(info->eod_id, 256);
  EXPECT_EQ(info->num_files, 4);
  EXPECT_EQ(info->num_documents, 4);
  EXPECT_EQ(info->sources, std::vector<std::string>{folder.Path("in/**")});
}

TEST(DatasetBuild, DropsLongDocuments) {
  const TempFolder folder;
  folder.Write("a.txt", "12345");
  folder.Write("b.txt", "123456");
  const auto summary = BuildDataset(
      {.inputs = {folder.Path("*.txt")}, .output_prefix = folder.Path("d"), .max_tokens = 6});
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->long_documents, 1);
  EXPECT_EQ(Texts(folder.Path("d")), std::vector<std::string>{"12345"});
}

std::string NumberedLines(int count) {
  std::string lines;
  for (int i = 0; i < count; ++i) lines += "{\"text\": \"document " + std::to_string(i) + "\"}\n";
  return lines;
}

TEST(DatasetBuild, SplitsStably) {
  const TempFolder folder;
  const std::string few = folder.Write("few.jsonl", NumberedLines(1000));
  const std::string more = folder.Write("more.jsonl", NumberedLines(1500));
  const auto build = [&](const std::string& input, const std::string& name, uint64_t seed) {
    const auto summary = BuildDataset({.inputs = {input},
                                       .output_prefix = folder.Path(name),
                                       .validation_fraction = 0.1,
                                       .seed = seed});
    EXPECT_TRUE(summary.ok()) << summary.status();
    EXPECT_NEAR(static_cast<double>(summary->valid_documents) /
                    static_cast<double>(summary->valid_documents + summary->train_documents),
                0.1, 0.04);
    return Texts(ValidationPrefix(folder.Path(name)));
  };
  const std::vector<std::string> valid = build(few, "a", 1);
  std::vector<std::string> all = Texts(folder.Path("a"));
  all.insert(all.end(), valid.begin(), valid.end());
  std::vector<std::string> expected;
  for (int i = 0; i < 1000; ++i) expected.push_back("document " + std::to_string(i));
  EXPECT_THAT(all, testing::UnorderedElementsAreArray(expected));

  EXPECT_EQ(build(few, "b", 1), valid);
  EXPECT_NE(build(few, "c", 2), valid);
  std::vector<std::string> grown = build(more, "d", 1);
  ASSERT_GT(grown.size(), valid.size());
  grown.resize(valid.size());
  EXPECT_EQ(grown, valid);
}

TEST(DatasetBuild, WritesNothingWhenItFails) {
  const TempFolder folder;
  folder.Write("in/a.txt", "abc");
  folder.Write("in/b.jsonl", "{\"text\": \"abc\"}\n{\"x\": 1}\n");
  const std::string prefix = folder.Path("out/d");
  const std::string text = folder.Path("in/a.txt");
  const struct {
    DatasetBuildOptions options;
    ExitCode code;
    std::string message;
  } cases[] = {
      {{.inputs = {folder.Path("in/b.jsonl")}, .output_prefix = prefix},
       ExitCode::kData,
       "b.jsonl:2: the line has no key \"text\""},
      {{.inputs = {text}, .output_prefix = prefix, .min_tokens = 5},
       ExitCode::kData,
       "1 too short"},
      {{.inputs = {text}, .output_prefix = prefix, .validation_fraction = 0.01},
       ExitCode::kData,
       "0 for validation"},
      {{.inputs = {folder.Path("none*")}, .output_prefix = prefix}, ExitCode::kData, "matches no"},
      {{.inputs = {text}, .output_prefix = ""}, ExitCode::kUsage, "prefix"},
      {{.inputs = {text}, .output_prefix = prefix, .validation_fraction = 1},
       ExitCode::kUsage,
       "fraction"},
      {{.inputs = {text}, .output_prefix = prefix, .min_tokens = 9, .max_tokens = 8},
       ExitCode::kUsage,
       "tokens"},
      {{.inputs = {text}, .output_prefix = prefix, .skip_bad = -1}, ExitCode::kUsage, "skip"},
  };
  for (const auto& c : cases) {
    const auto summary = BuildDataset(c.options);
    EXPECT_EQ(ExitCodeOf(summary.status()), c.code) << c.message;
    EXPECT_THAT(std::string(summary.status().message()), HasSubstr(c.message));
  }
  EXPECT_TRUE(!std::filesystem::exists(folder.Path("out")) ||
              std::filesystem::is_empty(folder.Path("out")));
}

}  // namespace
}  // namespace evenkeel
