// Bad configurations and the exact messages they give.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "runtime/base/exit_code.h"
#include "tests/unit/config/sample_config.h"

namespace evenkeel {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

struct BadCase {
  const char* text;
  const char* message;
};

// Every text also gives train.steps, which is required, unless that is the point.
class BadConfig : public testing::TestWithParam<BadCase> {};

TEST_P(BadConfig, GivesTheMessage) {
  SampleConfig config;
  const absl::Status status = ReadSample(GetParam().text, {}, &config);
  EXPECT_EQ(std::string(status.message()), GetParam().message) << GetParam().text;
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kUsage);
}

constexpr char kOneOf[] = " (one of softmax, lightning)";

INSTANTIATE_TEST_SUITE_P(
    Keys, BadConfig,
    testing::Values(
        BadCase{"model: {hiden_size: 8}\ntrain: {steps: 1}",
                "x.yaml:1:9: model.hiden_size: unknown key; did you mean hidden_size?"},
        BadCase{"lr: 0.1\ntrain: {steps: 1}",
                "x.yaml:1:1: lr: unknown key; did you mean train.lr?"},
        BadCase{"train: {steps: 1}\nmodle:\n  hidden_size: 8",
                "x.yaml:2:1: modle: unknown key; did you mean model?"},
        BadCase{"train: {steps: 1, theta: 5}",
                "x.yaml:1:19: train.theta: unknown key; did you mean model.rope.theta?"},
        BadCase{"train: {steps: 1}\nmodel: {Hidden-Size: 8}",
                "x.yaml:2:9: model.Hidden-Size: unknown key; did you mean hidden_size?"},
        BadCase{"train: {steps: 1, zzz: 8}", "x.yaml:1:19: train.zzz: unknown key"},
        BadCase{"train.lr: 0.1\ntrain: {steps: 1}",
                "x.yaml:1:1: train.lr: a dotted key; in a file, write the section and its keys "
                "below it"},
        BadCase{"seed: 1\nseed: 2\ntrain: {steps: 1}",
                "x.yaml:2:1: seed: duplicate key; first given on line 1"},
        BadCase{"train: {steps: 1}\nmodel:\n  rope:\n    theta: 2\n    theta: 2",
                "x.yaml:5:5: model.rope.theta: duplicate key; first given on line 4"},
        BadCase{"b: &b {steps: 1}\ntrain:\n  <<: *b\n  steps: 1",
                "x.yaml:1:1: b: unknown key\n"
                "x.yaml:3:3: train.<<: merge keys (<<) are not supported; write the keys out"},
        BadCase{"? [a, b]\n: 1\ntrain: {steps: 1}", "x.yaml:1:3: ?: a key must be a word"},
        BadCase{"name: a", "x.yaml: train.steps: missing; this key must be given"},
        BadCase{"train:\n  lr: 0.1", "x.yaml:1:1: train.steps: missing; this key must be given"},
        BadCase{"train: 3", "x.yaml:1:8: train: expected a section with keys of its own, got 3"}));

INSTANTIATE_TEST_SUITE_P(
    Values, BadConfig,
    testing::Values(
        BadCase{"train: {steps: 1e6}",
                "x.yaml:1:16: train.steps: expected an integer, got 1e6; write 1000000"},
        BadCase{"train: {steps: 010}",
                "x.yaml:1:16: train.steps: expected an integer, got 010; leading zeros mean octal "
                "to some: write 10"},
        BadCase{"train: {steps: 1_000}",
                "x.yaml:1:16: train.steps: expected an integer, got 1_000; write 1000"},
        BadCase{"train: {steps: \"12\"}",
                "x.yaml:1:16: train.steps: expected an integer, got the string \"12\"; write it "
                "without quotes"},
        BadCase{"train: {steps: 0x10}",
                "x.yaml:1:16: train.steps: expected an integer, got 0x10; write it in decimal"},
        BadCase{"train: {steps: 2.5}", "x.yaml:1:16: train.steps: expected an integer, got 2.5"},
        BadCase{"train: {steps: 99999999999999999999}",
                "x.yaml:1:16: train.steps: expected an integer, got 99999999999999999999, which "
                "does not fit 64 bits"},
        BadCase{"train: {steps: }", "x.yaml:1:16: train.steps: expected an integer, got nothing"},
        BadCase{"train: {steps: [1]}", "x.yaml:1:16: train.steps: expected an integer, got a list"},
        BadCase{"train: {steps: 0}", "x.yaml:1:16: train.steps: must be at least 1, got 0"},
        BadCase{"train: {steps: 1}\nmodel: {num_heads: 2048}",
                "x.yaml:2:20: model.num_heads: must be between 1 and 1024, got 2048"},
        BadCase{"train: {steps: 1}\nmodel: {kv_heads: x}",
                "x.yaml:2:19: model.kv_heads: expected an integer, got x"},
        BadCase{"train: {steps: 1, lr: .nan}",
                "x.yaml:1:23: train.lr: expected a finite number, got .nan"},
        BadCase{"train: {steps: 1, lr: -.inf}",
                "x.yaml:1:23: train.lr: expected a finite number, got -.inf"},
        BadCase{"train: {steps: 1, lr: 1e999}",
                "x.yaml:1:23: train.lr: expected a number, got 1e999, which is beyond the range of "
                "a 64-bit float"},
        BadCase{"train: {steps: 1, lr: fast}",
                "x.yaml:1:23: train.lr: expected a number, got fast"},
        BadCase{"train: {steps: 1, lr: 2}",
                "x.yaml:1:23: train.lr: must be between 0 and 1, got 2"},
        BadCase{"train: {steps: 1, lr: 1_0.5}",
                "x.yaml:1:23: train.lr: expected a number, got 1_0.5; write 10.5"},
        BadCase{"train: {steps: 1, resume: no}",
                "x.yaml:1:27: train.resume: expected true or false, got no; write false"},
        BadCase{"train: {steps: 1, resume: True}",
                "x.yaml:1:27: train.resume: expected true or false, got True; write true"},
        BadCase{"train: {steps: 1, resume: \"true\"}",
                "x.yaml:1:27: train.resume: expected true or false, got the string \"true\"; write "
                "true"},
        BadCase{"train: {steps: 1}\nmodel: {pattern: softmax}",
                "x.yaml:2:18: model.pattern: expected a list like [a, b], got softmax"},
        BadCase{"train: {steps: 1}\nmodel: {pattern: [a, [b]]}",
                "x.yaml:2:22: model.pattern: expected a list of strings, got a list in it"},
        BadCase{"train: {steps: 1}\nname:", "x.yaml:2:1: name: expected a string, got nothing"},
        BadCase{"name:\n\nseed: 3\ntrain: {steps: 1}",
                "x.yaml:1:1: name: expected a string, got nothing"},
        BadCase{"train: {steps: !!int 1}",
                "x.yaml:1:16: train.steps: YAML tags (!...) are not supported"},
        BadCase{"train: {steps: 1}\nmodel: {hidden_size: 10}",
                "x.yaml:2:1: model.num_heads: does not divide hidden_size"},
        BadCase{"train: {steps: 1}\nmodel: {num_heads: 7}",
                "x.yaml:2:9: model.num_heads: does not divide hidden_size"}));

TEST(ConfigErrors, EnumNamesTheNearestValue) {
  SampleConfig config;
  const absl::Status status = ReadSample("model: {kind: sofmax}\ntrain: {steps: 1}", {}, &config);
  EXPECT_EQ(
      status.message(),
      std::string("x.yaml:1:15: model.kind: unknown value sofmax; did you mean softmax?") + kOneOf);
}

TEST(ConfigErrors, AllAreReportedInTheOrderOfTheFile) {
  SampleConfig config;
  const absl::Status status =
      ReadSample("train: {steps: -1, lr: x}\nmodel:\n  hidden_size: 0\n  hidden_size: 1\nnam: b\n",
                 {"train.lr=y", "modl.kind=1"}, &config);
  EXPECT_EQ(status.message(),
            "x.yaml:1:16: train.steps: must be at least 1, got -1\n"
            "x.yaml:3:16: model.hidden_size: must be at least 1, got 0\n"
            "x.yaml:4:3: model.hidden_size: duplicate key; first given on line 3\n"
            "x.yaml:5:1: nam: unknown key; did you mean name?\n"
            "--set train.lr=y: train.lr: expected a number, got y\n"
            "--set modl.kind=1: modl: unknown key; did you mean model?");
}

TEST(ConfigErrors, MalformedOverrides) {
  SampleConfig config;
  const absl::Status status = ReadSample(
      "train: {steps: 1}",
      {"lr", "=3", "a..b=1", "name.x=1", "model={a: 1}", "model.pattern=[a", "train.=2"}, &config);
  EXPECT_THAT(std::string(status.message()),
              StartsWith("--set lr: write it as section.key=value\n"
                         "--set =3: write it as section.key=value\n"
                         "--set a..b=1: write it as section.key=value\n"));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("--set model={a: 1}: model: the value is a map; set its keys one by one"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("--set model.pattern=[a: model.pattern: "));
  EXPECT_THAT(std::string(status.message()), HasSubstr("--set name.x=1: name: expected a string"));
}

TEST(ConfigErrors, UnreadableDocuments) {
  SampleConfig config;
  const auto message = [&](const std::string& text) {
    return std::string(ReadSample(text, {}, &config).message());
  };
  EXPECT_EQ(message(""), "x.yaml: has no keys");
  EXPECT_EQ(message("# nothing\n"), "x.yaml: has no keys");
  EXPECT_EQ(message("- a\n- b\n"), "x.yaml:1:1: the file must hold keys with values (key: value)");
  EXPECT_EQ(message("just words"), "x.yaml:1:1: the file must hold keys with values (key: value)");
  EXPECT_THAT(message("a: [1, 2"), StartsWith("x.yaml:1:"));
  EXPECT_THAT(message("a:\n\t- b"), StartsWith("x.yaml:2:2: "));
  EXPECT_THAT(message("a: 1\n---\nb: 2\n"), HasSubstr("a second document begins here"));
  EXPECT_THAT(message("a: &x [*x]"), HasSubstr("the alias contains itself"));
  EXPECT_EQ(message(std::string("a: 1\nb\0c", 8)),
            "x.yaml: line 2 has a control character; this is not a text file");
  EXPECT_EQ(message("a: \xff\xfe"), "x.yaml: line 1 is not UTF-8 text");
}

TEST(ConfigErrors, SyntaxSaysWhatItUsuallyIs) {
  SampleConfig config;
  const auto message = [&](const std::string& text) {
    return std::string(ReadSample(text, {}, &config).message());
  };
  EXPECT_EQ(message("train:\n\tsteps: 1\n"),
            "x.yaml:2:7: illegal map value; line 2 begins with a tab: indent with spaces");
  constexpr char kHint[] =
      " written 'key: value', with a space after the colon, and are both lines indented as they "
      "should be?";
  EXPECT_EQ(message("train:\n  steps:1\n\n  # lr\n  lr: 0.1\n"),
            absl::StrCat("x.yaml:5:3: end of map not found; is line 2", kHint));
  EXPECT_EQ(message("train:\n  steps = 1\n  lr: 0.1\n"),
            absl::StrCat("x.yaml:3:5: illegal map value; is line 2", kHint));
  EXPECT_EQ(message("train:\n steps: 1\n  lr: 0.1\n"),
            absl::StrCat("x.yaml:3:5: illegal map value; is line 2", kHint));
  // Without this, the rest of the file would be the name.
  EXPECT_EQ(message("seed: 1\nname: \"a\ntrain: {steps: 1}\n"),
            "x.yaml:2:7: the quote that begins here has no end");
  EXPECT_EQ(message("name: 'it''s\ntrain: {steps: 1}\n"),
            "x.yaml:1:7: the quote that begins here has no end");
  EXPECT_EQ(message("name: \"a\\\"\ntrain: {steps: 1}\n"),
            "x.yaml:1:7: the quote that begins here has no end");
  for (const char* name : {"'it''s'", "\"a\n  b\"", "\"\\\\\"", "|\n  a 'b\n", "''"}) {
    EXPECT_EQ(message(absl::StrCat("train: {steps: 1}\nname: ", name)), "") << name;
  }
}

TEST(ConfigErrors, HostileDocumentsEndQuickly) {
  SampleConfig config;
  EXPECT_FALSE(ReadSample("a: " + std::string(200000, '['), {}, &config).ok());

  std::string bomb = "train: {steps: 1}\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 13; ++i) {
    const std::string p = absl::StrCat("*a", i - 1);
    absl::StrAppend(&bomb, "a", i, ": &a", i, " [", p);
    for (int j = 1; j < 10; ++j) bomb += ", " + p;
    bomb += "]\n";
  }
  bomb += "model: {pattern: *a12}\n";
  EXPECT_THAT(std::string(ReadSample(bomb, {}, &config).message()),
              HasSubstr("model.pattern: expected a list of strings, got a list in it"));

  std::string many;
  for (int i = 0; i < 49000; ++i) absl::StrAppend(&many, "hiden_size", i, ": 1\n");
  EXPECT_THAT(std::string(ReadSample(many, {}, &config).message()), HasSubstr("more errors"));
  for (int i = 0; i < 2000; ++i) absl::StrAppend(&many, "k", i, ": 1\n");
  EXPECT_THAT(std::string(ReadSample(many, {}, &config).message()),
              HasSubstr("more than 100000 values"));

  // Random bytes, printable ones among them: any answer but a crash.
  uint64_t state = 7;
  for (int round = 0; round < 2000; ++round) {
    std::string text = round % 2 == 0 ? "train: {steps: 1}\n" : "";
    for (int i = 0; i < 60; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      text += "abc01:- []{}&*!|>'\"%@`#,?\n\t.~<="[(state >> 33) % 32];
    }
    (void)ReadSample(text, {}, &config);
  }
}

TEST(ConfigErrors, Files) {
  SampleConfig config;
  const auto read = [&](const std::string& file) {
    return ReadConfig(file, {}, [&](ConfigFields& f) { DescribeSample(config, f); });
  };
  const absl::Status missing = read("no/such.yaml");
  EXPECT_EQ(missing.message(),
            "no/such.yaml: cannot read the config file: No such file or directory");
  EXPECT_EQ(ExitCodeOf(missing), ExitCode::kUsage);
  EXPECT_THAT(std::string(read("/").message()), HasSubstr("is a folder"));

  const std::string file = testing::TempDir() + "/ek_config_big.yaml";
  std::ofstream(file) << "train: {steps: 1}\n#" << std::string(1 << 20, 'x');
  EXPECT_THAT(std::string(read(file).message()), HasSubstr("larger than 1 MiB"));
  std::ofstream(file) << "train: {steps: 7}\n";
  EXPECT_TRUE(read(file).ok());
  EXPECT_EQ(config.steps, 7);
  std::remove(file.c_str());
}

}  // namespace
}  // namespace evenkeel
