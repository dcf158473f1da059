#include "launch/run_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/exit_code.h"
#include "runtime/config/config_fields.h"

namespace evenkeel {
namespace {

using ::testing::HasSubstr;

absl::Status Read(const std::string& text, const std::vector<std::string>& overrides,
                  RunConfig* config) {
  return ReadConfigFromText(text, "x.yaml", overrides,
                            [&](ConfigFields& fields) { DescribeFields(fields, *config); });
}

// The present value of every key.
std::map<std::string, std::string> ValuesOf(const RunConfig& config) {
  RunConfig copy = config;
  std::map<std::string, std::string> values;
  for (const KeyDescription& key :
       ListConfigKeys([&](ConfigFields& fields) { DescribeFields(fields, copy); })) {
    values[key.path] = key.default_value;
  }
  return values;
}

constexpr char kModel[] =
    "model: {vocab_size: 32, hidden_size: 16, intermediate_size: 24, num_layers: 2, num_heads: "
    "4}\n";
constexpr char kSmall[] =
    "data: {train: d}\n"
    "model: {vocab_size: 32, hidden_size: 16, intermediate_size: 24, num_layers: 2, num_heads: "
    "4}\n";

// Every key with a value that is not its default, as YAML prints it.
const std::pair<const char*, const char*> kEveryKey[] = {
    {"folder", "runs/other"},
    {"seed", "4611686018427387904"},
    {"model.layer_pattern", "[lightning, softmax, norm_attention, diag_attention]"},
    {"model.vocab_size", "1000"},
    {"model.hidden_size", "64"},
    {"model.intermediate_size", "96"},
    {"model.num_layers", "8"},
    {"model.num_heads", "4"},
    {"model.num_kv_heads", "2"},
    {"model.head_dim", "24"},
    {"model.max_position_embeddings", "8192"},
    {"model.norm_eps", "1e-05"},
    {"model.tie_embeddings", "true"},
    {"model.scale_embedding", "true"},
    {"model.embedding_norm", "true"},
    {"model.final_norm_gain", "false"},
    {"model.rope_theta", "500000"},
    {"model.rope_scaling.type", "yarn"},
    {"model.rope_scaling.factor", "4"},
    {"model.rope_scaling.low_freq_factor", "1.5"},
    {"model.rope_scaling.high_freq_factor", "5"},
    {"model.rope_scaling.original_max_position_embeddings", "2048"},
    {"model.rope_scaling.beta_fast", "16"},
    {"model.rope_scaling.beta_slow", "2"},
    {"model.rope_scaling.attention_factor", "1.25"},
    {"model.qkv_bias", "true"},
    {"model.qk_norm", "true"},
    {"model.lrpe_layers", "[\"0\", \"4\"]"},
    {"model.variant", "t1"},
    {"model.block_size", "32"},
    {"model.init_std", "0.03"},
    {"model.depth_scaled_init", "true"},
    {"data.train", "data/a"},
    {"data.validation", "data/b"},
    {"data.sequence_length", "4096"},
    {"train.steps", "7"},
    {"train.global_batch_size", "5"},
    {"train.micro_batch_size", "3"},
    {"train.lr", "0.003"},
    {"train.min_lr", "0.0003"},
    {"train.warmup_steps", "2"},
    {"train.schedule", "constant_then_decay"},
    {"train.decay_steps", "4"},
    {"train.weight_decay", "0.05"},
    {"train.beta1", "0.8"},
    {"train.beta2", "0.98"},
    {"train.eps", "1e-07"},
    {"train.clip_norm", "0.5"},
    {"train.eval_every", "3"},
    {"train.eval_samples", "11"},
    {"train.log_every", "2"},
    {"train.max_minutes", "1.5"},
    {"train.on_nonfinite", "skip"},
    {"train.init_from", "models/a"},
    {"checkpoint.every", "6"},
    {"checkpoint.keep_last", "9"},
    {"checkpoint.resume", "never"},
    {"checkpoint.fallback", "false"},
    {"checkpoint.on_error", "stop"},
    {"parallel.pp", "2"},
    {"parallel.dp", "3"},
    {"parallel.cp", "5"},
    {"parallel.tp", "4"},
    {"parallel.virtual_stages", "2"},
    {"parallel.layers_per_stage", "[\"1\", \"3\", \"2\", \"2\"]"},
    {"parallel.zero", "\"3\""},
    {"parallel.attention", "disaggregated"},
    {"parallel.attention_servers", "\"2\""},
    {"parallel.attention_servers_min", "3"},
    {"parallel.attention_tolerance", "0.25"},
    {"parallel.attention_shard", "64"},
    {"parallel.ping_pong", "serial"},
    {"parallel.attention_messages", "signal"},
    {"parallel.attention_cost", "cost.json"},
    {"parallel.attention_speeds", "measured"},
    {"parallel.linear_attention", "scan"},
    {"parallel.tp_transport", "copy_engines"},
    {"parallel.split", "contiguous"},
    {"trace.steps", "7"},
    {"trace.first_step", "3"},
    {"runtime.device", "cuda"},
    {"runtime.dtype", "bfloat16"},
    {"runtime.fp8", "true"},
    {"runtime.ranks_per_gpu", "2"},
    {"runtime.threads", "3"},
    {"runtime.recompute", "layer"},
    {"runtime.timeout_s", "12.5"},
    {"runtime.lost_after_s", "7.5"},
    {"runtime.bucket_mb", "16"},
    {"runtime.peak_gflops", "99.5"},
};

void ExpectValues(const RunConfig& config, const std::map<std::string, std::string>& expected) {
  const auto values = ValuesOf(config);
  for (const auto& [key, value] : values) {
    const auto found = expected.find(key);
    ASSERT_NE(found, expected.end()) << key << " is missing from the table";
    EXPECT_EQ(value, found->second) << key;
  }
  EXPECT_EQ(values.size(), expected.size());
}

TEST(RunConfig, EveryKeySurvivesWritingAndReading) {
  std::vector<std::string> overrides;
  std::map<std::string, std::string> expected;
  for (const auto& [key, value] : kEveryKey) {
    overrides.push_back(absl::StrCat(key, "=", value));
    expected[key] = value;
  }
  RunConfig config;
  const absl::Status status = Read("seed: 2", overrides, &config);
  ASSERT_TRUE(status.ok()) << status;
  ExpectValues(config, expected);
  const auto defaults = ValuesOf(RunConfig());
  for (const auto& [key, value] : expected) EXPECT_NE(defaults.at(key), value) << key;

  const std::string yaml = ToYaml(config);
  RunConfig again;
  const absl::Status reread = Read(yaml, {}, &again);
  ASSERT_TRUE(reread.ok()) << reread << "\n" << yaml;
  ExpectValues(again, expected);
  EXPECT_EQ(ToYaml(again), yaml);
}

TEST(RunConfig, ValuesReachTheirPlaces) {
  RunConfig config;
  ASSERT_TRUE(Read(kSmall,
                   {"train.steps=50", "train.schedule=constant_then_decay",
                    "model.layer_pattern=[lightning, softmax]", "runtime.dtype=float64",
                    "model.lrpe_layers=[]", "runtime.recompute=mlp", "train.beta2=0.9"},
                   &config)
                  .ok());
  EXPECT_EQ(config.train.schedule.total_steps, 50);
  EXPECT_EQ(config.train.schedule.decay, LrDecay::kConstantThenDecay);
  EXPECT_EQ(config.model.layer_pattern,
            (std::vector<LayerKind>{LayerKind::kLightning, LayerKind::kSoftmax}));
  EXPECT_TRUE(config.model.lrpe_layers.empty());
  EXPECT_EQ(ComputeDType(config.runtime), DType::kF64);
  EXPECT_EQ(config.runtime.recompute, Recompute::kMlp);
  EXPECT_EQ(config.train.adamw.beta2, 0.9);
}

TEST(RunConfig, CrossFieldErrorsSayWhatIsWrong) {
  const struct {
    std::string text;
    std::vector<std::string> overrides;
    std::string message;
  } cases[] = {
      {absl::StrCat(kSmall, "train: {lr: 1e-3, min_lr: 2e-3}"),
       {},
       "x.yaml:3:19: train.min_lr: is 0.002, more than lr, which is 0.001"},
      {kSmall,
       {"train.steps=5", "train.warmup_steps=6"},
       "--set train.warmup_steps=6: train.warmup_steps: is 6, more than steps, which is 5"},
      {kSmall, {"folder="}, "--set folder=: folder: is empty: name one, such as runs/my_run"},
      {kSmall,
       {"data.train="},
       "--set data.train=: data.train: is empty: name a data set that `evenkeel data build` made"},
      {kSmall,
       {"model.lrpe_layers=[1, 2]"},
       "--set model.lrpe_layers=[1, 2]: model.lrpe_layers: there is no layer 2: the last of 2 is "
       "1"},
      {absl::StrCat(kModel, "data: {train: d, sequence_length: 300}"),
       {"model.max_position_embeddings=256"},
       "x.yaml:2:18: data.sequence_length: is longer than model.max_position_embeddings: the model "
       "is not meant for it"},
      {kSmall,
       {"model.layer_pattern=[softmax, lightening]"},
       "--set model.layer_pattern=[softmax, lightening]: model.layer_pattern: unknown kind of "
       "layer 'lightening'; kinds are softmax, lightning, norm_attention, diag_attention"},
      {kSmall,
       {"model.layer_pattern=[]"},
       "--set model.layer_pattern=[]: model.layer_pattern: is empty: name at least one kind of "
       "layer"},
      {kSmall,
       {"model.num_heads=3"},
       "--set model.num_heads=3: model.num_heads: hidden_size 16 is not a multiple of num_heads 3: "
       "set head_dim, or other heads"},
      {kSmall,
       {"model.num_kv_heads=3"},
       "x.yaml:2:80: model.num_heads: num_heads 4 is not a multiple of num_kv_heads 3"},
      {kSmall,
       {"model.head_dim=5"},
       "x.yaml:2:80: model.num_heads: head_dim 5 is odd: rotary embeddings turn pairs of "
       "dimensions"},
      {kSmall,
       {"model.lrpe_layers=[0, first]"},
       "--set model.lrpe_layers=[0, first]: model.lrpe_layers: 'first' is not the index of a "
       "layer"},
      {kSmall,
       {"train.micro_batch_size=1048577", "train.global_batch_size=1048577",
        "data.sequence_length=4096"},
       "--set train.micro_batch_size=1048577: train.micro_batch_size: times data.sequence_length "
       "is "
       "more than 4294967296 tokens at once"},
      {kModel, {}, "x.yaml: data.train: missing; this key must be given"},
  };
  for (const auto& c : cases) {
    RunConfig config;
    const absl::Status status = Read(c.text, c.overrides, &config);
    EXPECT_EQ(std::string(status.message()), c.message);
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kUsage);
  }
}

// What only disaggregated attention reads, with a value that is not the default.
const std::pair<const char*, const char*> kPoolKeys[] = {
    {"attention_servers", "2"}, {"attention_servers_min", "3"},   {"attention_tolerance", "1"},
    {"attention_shard", "64"},  {"attention_cost", "cost.json"},  {"attention_speeds", "measured"},
    {"ping_pong", "off"},       {"attention_messages", "signal"},
};

TEST(RunConfig, KeysOfDisaggregationAreNotSetInVain) {
  const std::string wrong =
      "has no effect, as parallel.attention is not disaggregated: remove it, or set "
      "parallel.attention: disaggregated";
  for (const auto& [key, value] : kPoolKeys) {
    const std::string path = absl::StrCat("parallel.", key);
    const std::string setting = absl::StrCat(path, "=", value);
    for (const char* other : {"gather", "ring", "ulysses"}) {
      RunConfig config;
      const absl::Status status =
          Read(absl::StrCat(kSmall, "parallel:\n  attention: ", other, "\n  ", key, ": ", value),
               {}, &config);
      EXPECT_EQ(std::string(status.message()), absl::StrCat("x.yaml:5:3: ", path, ": ", wrong));
      EXPECT_EQ(ExitCodeOf(status), ExitCode::kUsage);
    }
    RunConfig config;
    EXPECT_EQ(std::string(Read(kSmall, {setting}, &config).message()),
              absl::StrCat("--set ", setting, ": ", path, ": ", wrong));
    // The strategy is unknown: that is all that is told.
    const std::string unknown(
        Read(kSmall, {setting, "parallel.attention=disagregated"}, &config).message());
    EXPECT_THAT(unknown, HasSubstr("did you mean disaggregated?"));
    EXPECT_THAT(unknown, ::testing::Not(HasSubstr("no effect")));
  }
  for (const char* key : {"parallel.attention_servers_min=2", "runtime.lost_after_s=2"}) {
    RunConfig config;
    EXPECT_THAT(
        std::string(Read(kSmall, {"parallel.attention=disaggregated", key}, &config).message()),
        HasSubstr(" has no effect without dedicated "));
    config = RunConfig();
    const absl::Status status = Read(
        kSmall, {"parallel.attention=disaggregated", "parallel.attention_servers=2", key}, &config);
    EXPECT_TRUE(status.ok()) << status;
  }
}

TEST(RunConfig, CopyEnginesAreNotSetInVain) {
  const std::string set = "parallel.tp_transport=copy_engines";
  for (const std::vector<std::string>& more :
       {std::vector<std::string>{}, {"parallel.tp=2"}, {"runtime.device=cuda"}}) {
    std::vector<std::string> overrides = more;
    overrides.push_back(set);
    RunConfig config;
    EXPECT_THAT(std::string(Read(kSmall, overrides, &config).message()),
                HasSubstr("parallel.tp_transport: copy_engines has no effect without"));
  }
  RunConfig config;
  const absl::Status status = Read(kSmall, {"parallel.tp=2", "runtime.device=cuda", set}, &config);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(RunConfig, Fp8TakesAGpu) {
  RunConfig config;
  EXPECT_THAT(std::string(Read(kSmall, {"runtime.fp8=true"}, &config).message()),
              HasSubstr("runtime.fp8: takes device: cuda"));
  const absl::Status status = Read(kSmall, {"runtime.fp8=true", "runtime.device=cuda"}, &config);
  EXPECT_TRUE(status.ok()) << status;
}

// What a run folder holds of a config can be run: it names every key, whatever the strategy.
TEST(RunConfig, WrittenConfigsOfEveryStrategyCanBeRead) {
  const std::string path = testing::TempDir() + "ek_run_config_strategies.yaml";
  for (const char* strategy : {"gather", "ring", "ulysses", "disaggregated"}) {
    std::ofstream(path) << kSmall << "parallel: {attention: " << strategy << "}\n";
    const auto config = ReadRunConfig(path, {});
    ASSERT_TRUE(config.ok()) << config.status();
    std::ofstream(path) << ToYaml(*config);
    const auto again = ReadRunConfig(path, {});
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(ToYaml(*again), ToYaml(*config));
  }
  std::remove(path.c_str());
}

TEST(RunConfig, LimitsThatAreReachedAreAllowed) {
  RunConfig config;
  const absl::Status status =
      Read(kSmall,
           {"train.lr=1e-3", "train.min_lr=1e-3", "train.steps=5", "train.warmup_steps=5",
            "data.sequence_length=64", "model.max_position_embeddings=64",
            "train.micro_batch_size=67108864", "train.global_batch_size=1073741824"},
           &config);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(RunConfig, TellsAllErrorsAtOnce) {
  RunConfig config;
  const absl::Status status = Read(
      "model: {vocab_size: 32, hidden_size: 16, intermediate_size: -1, num_layers: 2}\n"
      "data: {train: d}\n"
      "train: {lr: 1e-3, min_lr: 1, stepps: 3}\n",
      {"runtime.dtype=float16"}, &config);
  const std::string message(status.message());
  EXPECT_THAT(message, HasSubstr("model.num_heads"));
  EXPECT_THAT(message, HasSubstr("model.intermediate_size"));
  EXPECT_THAT(message, HasSubstr("train.min_lr: is 1, more than lr, which is 0.001"));
  EXPECT_THAT(message, HasSubstr("train.stepps: unknown key; did you mean steps?"));
  EXPECT_THAT(message, HasSubstr("float16"));
}

// Keys that are described after a wrong one are known all the same.
TEST(RunConfig, AWrongListOfLayersOrServersIsAllThatIsTold) {
  const std::string text =
      absl::StrCat(kSmall,
                   "parallel: {layers_per_stage: [2, x], attention_servers: many, attention: "
                   "disaggregated, ping_pong: on, linear_attention: scan, split: auto}\n");
  RunConfig config;
  EXPECT_EQ(std::string(Read(text, {}, &config).message()),
            "x.yaml:3:12: parallel.layers_per_stage: 'x' is not a number of layers\n"
            "x.yaml:3:38: parallel.attention_servers: 'many' is neither in_place nor a number of "
            "ranks");
}

TEST(RunConfig, ReadsFilesAndNamesThem) {
  const std::string path = testing::TempDir() + "ek_run_config_test.yaml";
  std::ofstream(path) << kSmall << "seed: 9\n";
  const auto config = ReadRunConfig(path, {"train.steps=3"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->seed, 9);
  EXPECT_EQ(config->train.steps, 3);
  std::ofstream(path) << kSmall << "seed: -9\n";
  EXPECT_THAT(std::string(ReadRunConfig(path, {}).status().message()),
              HasSubstr(path + ":3:7: seed:"));
  std::remove(path.c_str());
  EXPECT_THAT(std::string(ReadRunConfig(path, {}).status().message()), HasSubstr(path));
}

}  // namespace
}  // namespace evenkeel
