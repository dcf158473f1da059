#include "runtime/data/text_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "runtime/base/exit_code.h"
#include "runtime/data/input_paths.h"
#include "runtime/data/jsonl_document.h"
#include "tests/unit/data/temp_folder.h"

namespace evenkeel {
namespace {

using testing::HasSubstr;
using Texts = std::vector<std::pair<std::string, std::string>>;  // origin, text

absl::StatusOr<Texts> ReadAll(TextSource* source) {
  Texts texts;
  TextDocument document;
  for (;;) {
    const auto more = source->Next(&document);
    if (!more.ok()) return more.status();
    if (!*more) return texts;
    texts.emplace_back(document.origin, document.text);
  }
}

absl::StatusOr<Texts> ReadAll(const TextSourceOptions& options) {
  TextSource source(options);
  return ReadAll(&source);
}

TEST(InputPaths, ExpandsPatterns) {
  const TempFolder folder;
  for (const char* name : {"b.txt", "a.txt", "c.md", ".hidden.txt", "x/a.txt", "x/y/z/deep.txt",
                           "x/y/b.md", ".git/a.txt", "odd[1].txt"}) {
    folder.Write(name, "x");
  }
  std::filesystem::create_directory_symlink(folder.Path("x"), folder.Path("x/loop"));
  const auto expand = [&](std::vector<std::string> patterns) -> std::vector<std::string> {
    for (std::string& pattern : patterns) pattern = folder.Path(pattern);
    const auto paths = ExpandInputs(patterns);
    if (!paths.ok()) return {std::string(paths.status().message())};
    std::vector<std::string> names;
    for (const std::string& path : *paths) names.push_back(path.substr(folder.Path("").size()));
    return names;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(expand({"b.txt", "a.txt"}), (Names{"b.txt", "a.txt"}));
  EXPECT_EQ(expand({"*.txt"}), (Names{"a.txt", "b.txt", "odd[1].txt"}));
  EXPECT_EQ(expand({"c.*", "?.txt", "a.txt"}), (Names{"c.md", "a.txt", "b.txt"}));
  EXPECT_EQ(expand({"odd[1].txt"}), (Names{"odd[1].txt"}));
  EXPECT_EQ(expand({"[!a].txt"}), (Names{"b.txt"}));
  EXPECT_EQ(expand({"**/*.txt"}),
            (Names{"a.txt", "b.txt", "odd[1].txt", "x/a.txt", "x/y/z/deep.txt"}));
  EXPECT_EQ(expand({"**/**/y/**/*"}), (Names{"x/y/b.md", "x/y/z/deep.txt"}));
  EXPECT_EQ(expand({"x/**"}), (Names{"x/a.txt", "x/y/b.md", "x/y/z/deep.txt"}));
  EXPECT_EQ(expand({"**/y/*"}), (Names{"x/y/b.md"}));
  EXPECT_EQ(expand({".*/*"}), (Names{".git/a.txt"}));
}

TEST(InputPaths, RefusesWhatNamesNothing) {
  const TempFolder folder;
  folder.Write("a.txt", "x");
  for (const auto& [input, message] : std::vector<std::pair<std::string, std::string>>{
           {folder.Path("*.md"), "matches no file"},
           {folder.Path("none.txt"), "No such file"},
           {folder.Path(""), "is a folder"},
           {folder.Path("none/*.txt"), "matches no file"},
           {folder.Path("a.txt/*"), "matches no file"},
           {"", "No such file"}}) {
    const auto paths = ExpandInputs({folder.Path("a.txt"), input});
    ASSERT_FALSE(paths.ok()) << input;
    EXPECT_EQ(ExitCodeOf(paths.status()), ExitCode::kData);
    EXPECT_THAT(std::string(paths.status().message()), HasSubstr(message));
  }
  EXPECT_FALSE(ExpandInputs({}).ok());
}

TEST(TextSource, ReadsFilesAndLines) {
  const TempFolder folder;
  const std::string plain = folder.Write("a.txt", "one\r\ntwo\n");
  const std::string marked = folder.Write("b.txt", "\xEF\xBB\xBFthree");
  const std::string empty = folder.Write("c.txt", "");
  const std::string only_mark = folder.Write("d.txt", "\xEF\xBB\xBF");
  const std::string lines = folder.Write(
      "e.jsonl",
      "\xEF\xBB\xBF{\"text\": \"four\"}\r\n\n  \r\n{\"id\": [1, {\"text\": \"no\"}], \"text\": "
      "\"f\\u00efve\\n\"}\n{\"text\": \"\"}\n{\"text\":\"six\"}");
  const std::string no_lines = folder.Write("f.jsonl", "");
  const std::string only_mark_line = folder.Write("g.jsonl", "\xEF\xBB\xBF\n");
  TextSource source({.paths = {plain, marked, empty, only_mark, lines, no_lines, only_mark_line}});
  const auto texts = ReadAll(&source);
  ASSERT_TRUE(texts.ok()) << texts.status();
  EXPECT_EQ(*texts, (Texts{{plain, "one\r\ntwo\n"},
                           {marked, "three"},
                           {lines + ":1", "four"},
                           {lines + ":4", "f\xC3\xAFve\n"},
                           {lines + ":6", "six"}}));
  EXPECT_EQ(source.num_empty(), 3);
  EXPECT_EQ(source.num_bad(), 0);
  EXPECT_FALSE(*source.Next(std::make_unique<TextDocument>().get()));
}

TEST(TextSource, ReadsLinesAcrossBlocks) {
  const TempFolder folder;
  std::string content;
  std::vector<std::string> expected;
  for (size_t i = 0; i < 60; ++i) {
    expected.push_back(std::string(1 + i * i * 37, static_cast<char>('a' + i % 26)));
    content += "{\"body\": \"" + expected.back() + "\"}\n";
  }
  ASSERT_GT(content.size(), size_t{2} << 20);
  const auto texts = ReadAll({.paths = {folder.Write("a.ndjson", content)}, .jsonl_key = "body"});
  ASSERT_TRUE(texts.ok()) << texts.status();
  ASSERT_EQ(texts->size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ((*texts)[i].second, expected[i]);
}

struct BadLine {
  std::string line, message;
};

std::vector<BadLine> BadLines() {
  std::vector<BadLine> lines = {
      {"{\"text\": \"a\"", "not valid JSON at byte"},
      {"{\"text\": \"a\"} x", "not valid JSON at byte"},
      {"{\"text\": \"a\"}{\"text\": \"b\"}", "not valid JSON"},
      {"{\"text\": \"a\",}", "not valid JSON"},
      {"{text: 1}", "not valid JSON"},
      {"{\"text\": \"a\tb\"}", "not valid JSON"},
      {"{\"text\": \"\\ud800\"}", "not valid JSON"},
      {"{\"text\": 1e999}", ""},
      {"null", "is null, not an object"},
      {"[]", "is an array, not an object"},
      {"\"text\"", "is a string, not an object"},
      {"{}", "has no key \"text\""},
      {"{\"Text\": \"a\"}", "has no key \"text\""},
      {"{\"a\": {\"text\": \"a\"}}", "has no key \"text\""},
      {"{\"text\": null}", "has null under \"text\""},
      {"{\"text\": 7}", "has a number under \"text\""},
      {"{\"text\": [\"a\"]}", "has an array under \"text\""},
      {"{\"text\": {\"text\": \"a\"}}", "has an object under \"text\""},
      {"{\"text\": \"a\", \"text\": \"b\"}", "has the key \"text\" twice"},
      {"{\"text\": \"\xFF\"}", "not UTF-8 at byte 11"},
      {"{\"text\": \"\xED\xA0\x80\"}", "not UTF-8 at byte 11"},
      {std::string("{\"text\": \"a\0b\"}", 15), "a NUL at byte 12"},
  };
  lines.push_back({"{\"a\": " + std::string(100000, '[') + std::string(100000, ']') + "}",
                   "nested over 128 levels"});
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"a\":";
  lines.push_back({objects, "nested over 128 levels"});
  return lines;
}

TEST(JsonlDocument, RefusesBadLines) {
  for (const BadLine& bad : BadLines()) {
    const auto text = ParseJsonlDocument(bad.line, "text");
    ASSERT_FALSE(text.ok()) << bad.line.substr(0, 80);
    EXPECT_THAT(std::string(text.status().message()), HasSubstr(bad.message));
  }
  EXPECT_EQ(*ParseJsonlDocument("{\"text\": \"\\u0000\"}", "text"), std::string(1, '\0'));
  EXPECT_EQ(*ParseJsonlDocument("{\"\": \"x\"}", ""), "x");
  const std::string deep = std::string(127, '[') + std::string(127, ']');
  EXPECT_EQ(*ParseJsonlDocument("{\"a\": " + deep + ", \"text\": \"x\"}", "text"), "x");
}

TEST(TextSource, NamesFileAndLineAndToleratesSoMany) {
  const TempFolder folder;
  std::string content = "{\"text\": \"first\"}\n";
  const std::vector<BadLine> bad = BadLines();
  for (const BadLine& line : bad) content += line.line + "\n";
  content += "{\"text\": \"last\"}\n";
  const std::string path = folder.Write("a.jsonl", content);
  const int64_t count = static_cast<int64_t>(bad.size());

  const auto strict = ReadAll({.paths = {path}});
  EXPECT_EQ(ExitCodeOf(strict.status()), ExitCode::kData);
  EXPECT_THAT(std::string(strict.status().message()),
              HasSubstr("a.jsonl:2: the line is not valid"));

  const auto one_short = ReadAll({.paths = {path}, .skip_bad = count - 1});
  EXPECT_THAT(std::string(one_short.status().message()),
              HasSubstr("a.jsonl:" + std::to_string(count + 1) + ": "));

  TextSource source({.paths = {path}, .skip_bad = count});
  const auto texts = ReadAll(&source);
  ASSERT_TRUE(texts.ok()) << texts.status();
  EXPECT_EQ(*texts,
            (Texts{{path + ":1", "first"}, {path + ":" + std::to_string(count + 2), "last"}}));
  EXPECT_EQ(source.num_bad(), count);
}

TEST(TextSource, BoundsTheSizeOfADocument) {
  const TempFolder folder;
  const std::string fits = "{\"text\": \"" + std::string(88, 'a') + "\"}";
  ASSERT_EQ(fits.size(), 100u);
  const std::string longer = "{\"text\": \"" + std::string(89, 'a') + "\"}";
  const std::string huge = std::string(3 << 20, 'x');
  const std::string lines =
      folder.Write("a.jsonl", fits + "\n" + longer + "\n" + huge + "\n" + fits);
  const std::string text = folder.Write("b.txt", std::string(100, 'b'));
  const std::string long_text = folder.Write("c.txt", std::string(101, 'c'));
  TextSource source({.paths = {lines, text, long_text}, .max_document_bytes = 100, .skip_bad = 3});
  const auto texts = ReadAll(&source);
  ASSERT_TRUE(texts.ok()) << texts.status();
  ASSERT_EQ(texts->size(), 3u);
  EXPECT_EQ((*texts)[1].first, lines + ":4");
  EXPECT_EQ((*texts)[2].first, text);
  EXPECT_EQ(source.num_bad(), 3);
  EXPECT_THAT(
      std::string(ReadAll({.paths = {long_text}, .max_document_bytes = 100}).status().message()),
      HasSubstr("c.txt: is larger than 100 bytes"));
}

TEST(TextSource, RefusesFilesThatAreNotText) {
  const TempFolder folder;
  for (const auto& [content, message] : std::vector<std::pair<std::string, std::string>>{
           {std::string("\x1F\x8B\x08\0", 4), "gzip"},
           {std::string("abc\0def", 7), "NUL at byte 4"},
           {"caf\xE9", "not UTF-8 at byte 4"}}) {
    const std::string path = folder.Write("a.txt", content);
    const auto texts = ReadAll({.paths = {path}});
    ASSERT_FALSE(texts.ok());
    EXPECT_THAT(std::string(texts.status().message()), HasSubstr(message));
    EXPECT_TRUE(ReadAll({.paths = {path}, .skip_bad = 1}).ok());
  }
  // A file that is not there is never passed over.
  EXPECT_FALSE(ReadAll({.paths = {folder.Path("gone.txt")}, .skip_bad = 100}).ok());
}

}  // namespace
}  // namespace evenkeel
