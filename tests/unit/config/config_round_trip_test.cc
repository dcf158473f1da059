// Reading, overriding, writing and listing by one description.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tests/unit/config/sample_config.h"

namespace evenkeel {
namespace {

std::string WriteSample(SampleConfig config) {
  return WriteConfig([&](ConfigFields& f) { DescribeSample(config, f); });
}

TEST(ConfigRead, TakesEveryKindOfValue) {
  SampleConfig config;
  const absl::Status status = ReadSample(
      "name: 'a: b # c'\n"
      "seed: -9223372036854775808\n"
      "model:\n"
      "  hidden_size: &h 512\n"
      "  num_heads: +8\n"
      "  kv_heads: 2\n"
      "  kind: lightning\n"
      "  pattern:\n"
      "  - softmax\n"
      "  - \"1\"\n"
      "  rope: {theta: 5e5, scale: .5}\n"
      "train:\n"
      "  steps: *h\n"
      "  lr: 1E-4\n"
      "  resume: false\n",
      {}, &config);
  ASSERT_TRUE(status.ok()) << status;
  const SampleConfig expected = {"a: b # c",       INT64_MIN, 512, 8,    2,   LayerKind::kLightning,
                                 {"softmax", "1"}, 5e5,       0.5, 1e-4, 512, false};
  EXPECT_EQ(config, expected);
}

TEST(ConfigRead, EmptySectionsAndAbsentKeysKeepDefaults) {
  SampleConfig config, defaults;
  defaults.steps = 5;
  ASSERT_TRUE(ReadSample("model:\ntrain: {steps: 5}", {}, &config).ok());
  EXPECT_EQ(config, defaults);
}

TEST(ConfigRead, OverridesWinAndTheLastOfThemToo) {
  SampleConfig config;
  const absl::Status status = ReadSample(
      "name: a\nmodel: {kv_heads: 2}\ntrain: {lr: 0.5}",
      {"train.steps=3", "train.steps=4", "train.lr=1e-3", "name=a: b=c", "model.kv_heads=null",
       "model.pattern=[x, 'y z']", "model.rope.theta=2", "train.resume=false"},
      &config);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(config.steps, 4);
  EXPECT_EQ(config.lr, 1e-3);
  EXPECT_EQ(config.name, "a: b=c");
  EXPECT_FALSE(config.kv_heads.has_value());
  EXPECT_THAT(config.pattern, testing::ElementsAre("x", "y z"));
  EXPECT_EQ(config.theta, 2);
  EXPECT_FALSE(config.resume);
  ASSERT_TRUE(ReadSample("train: {steps: 1}", {"name="}, &config).ok());
  EXPECT_EQ(config.name, "");
}

TEST(ConfigRead, AnOverrideRepairsABadValue) {
  SampleConfig config;
  EXPECT_TRUE(ReadSample("train: {steps: x}", {"train.steps=1"}, &config).ok());
}

TEST(ConfigRead, AnOverrideOfAnAliasedSectionLeavesTheOtherAlone) {
  struct Pair {
    int64_t a = 0, b = 0;
  } pair;
  const absl::Status status = ReadConfigFromText(
      "left: &s {x: 1}\nright: *s\n", "x.yaml", {"left.x=2"}, [&](ConfigFields& f) {
        f.Section("left", "",
                  [&](ConfigFields& s) { s.Int("x", &pair.a, "", kNoMinimum, kNoMaximum); });
        f.Section("right", "",
                  [&](ConfigFields& s) { s.Int("x", &pair.b, "", kNoMinimum, kNoMaximum); });
      });
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(pair.a, 2);
  EXPECT_EQ(pair.b, 1);
}

TEST(ConfigWrite, GoldenText) {
  EXPECT_EQ(WriteSample(SampleConfig()),
            "name: run  # of the run\n"
            "seed: 1  # of every random draw\n"
            "\n"
            "model:  # what is trained\n"
            "  hidden_size: 256  # width (at least 1)\n"
            "  num_heads: 4  # query heads (between 1 and 1024)\n"
            "  kv_heads: null  # key heads; as many as query heads if null (between 1 and 1024)\n"
            "  kind: softmax  # of layer (softmax | lightning)\n"
            "  pattern: [lightning, softmax]  # kinds of the layers\n"
            "\n"
            "  rope:  # rotary position\n"
            "    theta: 10000  # base (at least 1)\n"
            "    scale: null  # stretch (between 0 and 64)\n"
            "\n"
            "train:  # how it is trained\n"
            "  lr: 0.0003  # peak learning rate (between 0 and 1)\n"
            "  steps: 100  # optimizer steps (at least 1)\n"
            "  resume: true  # from the last checkpoint\n");
}

TEST(ConfigWrite, ReadsBackBitForBit) {
  const std::vector<std::string> names = {
      "",       "null",  "~",  "yes", "No", "1e3", "007",       "a b",      "- a",         "a: b",
      "#x",     "a # b", "'",  "\"",  "\\", "\n",  "tab\there", "\x01\x7f", "caf\xc3\xa9", "[a]",
      "{a}",    "*a",    "&a", "!a",  "|",  ">",   "%a",        "@a",       "`a",          " lead",
      "trail ", "a,b",   ".",  "..",  "-",  "<<",  "?",         "a\r\nb",   "/x/y.z"};
  const std::vector<double> numbers = {0.1,    1.0 / 3, 5e-324, 2.2250738585072014e-308,
                                       1e-300, 0.3,     1e-5,   0.9999999999999999};
  for (size_t i = 0; i < names.size(); ++i) {
    SampleConfig config, read;
    config.name = names[i];
    config.pattern = {names[i], names[(i + 1) % names.size()]};
    config.lr = numbers[i % numbers.size()];
    config.theta = 1 / numbers[i % numbers.size()];
    if (!std::isfinite(config.theta)) config.theta = 1.7976931348623157e308;
    config.scale = numbers[(i + 1) % numbers.size()];
    const std::string text = WriteSample(config);
    const absl::Status status = ReadSample(text, {}, &read);
    ASSERT_TRUE(status.ok()) << status << "\n" << text;
    EXPECT_EQ(read, config) << text;
    EXPECT_EQ(std::memcmp(&read.lr, &config.lr, sizeof(double)), 0);
    EXPECT_EQ(WriteSample(read), text);
  }
}

TEST(ConfigList, NamesEveryKey) {
  SampleConfig config;
  const std::vector<KeyDescription> keys =
      ListConfigKeys([&](ConfigFields& f) { DescribeSample(config, f); });
  std::vector<std::string> paths;
  for (const KeyDescription& key : keys) paths.push_back(key.path);
  EXPECT_THAT(paths, testing::ElementsAre("name", "seed", "model.hidden_size", "model.num_heads",
                                          "model.kv_heads", "model.kind", "model.pattern",
                                          "model.rope.theta", "model.rope.scale", "train.lr",
                                          "train.steps", "train.resume"));
  EXPECT_EQ(keys[5].type, "softmax | lightning");
  EXPECT_EQ(keys[5].default_value, "softmax");
  EXPECT_EQ(keys[3].limits, "between 1 and 1024");
  EXPECT_TRUE(keys[10].required);
  EXPECT_FALSE(keys[9].required);
}

}  // namespace
}  // namespace evenkeel
