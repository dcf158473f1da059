#include "launch/run_config.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/config/config_fields.h"

namespace evenkeel {
namespace {

constexpr int64_t kManySteps = int64_t{1} << 40;
// Bounds that keep products of sizes, tokens of a step and bytes of a micro-batch, within 64 bits.
constexpr int64_t kMaxSamples = int64_t{1} << 30;
constexpr int64_t kMaxTokensAtOnce = int64_t{1} << 32;

void DescribeData(ConfigFields& fields, DataConfig& config) {
  fields.String("train", &config.train, "training data: prefix of a .bin and .idx pair");
  fields.Required("train");
  if (config.train.empty()) {
    fields.Error("train", "is empty: name a data set that `evenkeel data build` made");
  }
  fields.String("validation", &config.validation, "held-out data, likewise; empty for none");
  fields.Int("sequence_length", &config.sequence_length, "tokens a sample", 1, kMaxTokensAtOnce);
}

void DescribeTrain(ConfigFields& fields, TrainConfig& config) {
  fields.Int("steps", &config.steps, "optimizer updates", 1, kManySteps);
  fields.Int("global_batch_size", &config.global_batch_size, "samples a step, over all ranks", 1,
             kMaxSamples);
  fields.Int("micro_batch_size", &config.micro_batch_size,
             "samples a replica computes at once; the rest is accumulated", 1, kMaxSamples);
  fields.Float("lr", &config.schedule.lr, "highest learning rate", 0, 1e3);
  fields.Float("min_lr", &config.schedule.min_lr, "learning rate at the end", 0, 1e3);
  fields.Int("warmup_steps", &config.schedule.warmup_steps, "linear warm-up", 0, kManySteps);
  fields.Enum("schedule", &config.schedule.decay, "cosine, or constant_then_decay",
              {{"cosine", LrDecay::kCosine}, {"constant_then_decay", LrDecay::kConstantThenDecay}});
  fields.Int("decay_steps", &config.schedule.decay_steps,
             "last steps with linear decay (constant_then_decay)", 0, kManySteps);
  fields.Float("weight_decay", &config.adamw.weight_decay, "AdamW, on matrices only", 0, 10);
  fields.Float("beta1", &config.adamw.beta1, "AdamW", 0, 0.999999999);
  fields.Float("beta2", &config.adamw.beta2, "AdamW", 0, 0.999999999);
  fields.Float("eps", &config.adamw.eps, "AdamW", 1e-30, 1);
  fields.Float("clip_norm", &config.clip_norm, "bound on the global gradient norm; 0 = none", 0,
               1e12);
  fields.Int("eval_every", &config.eval_every, "steps between evaluations; 0 = only at the end", 0,
             kManySteps);
  fields.Int("eval_samples", &config.eval_samples, "held-out samples an evaluation; 0 = all", 0,
             kManySteps);
  fields.Int("log_every", &config.log_every, "steps between log lines", 1, kManySteps);
  fields.Float("max_minutes", &config.max_minutes, "save and leave after so long; 0 = no limit", 0,
               1e9);
  fields.Enum("on_nonfinite", &config.on_nonfinite, "when loss or gradient is not finite",
              {{"stop", NonFinitePolicy::kStop}, {"skip", NonFinitePolicy::kSkip}});
  fields.String(
      "init_from", &config.init_from,
      "weights to start from: a run folder, a checkpoint or a Hugging Face folder; empty = "
      "random");
  config.schedule.total_steps = config.steps;
  if (config.schedule.min_lr > config.schedule.lr) {
    fields.Error("min_lr", absl::StrCat("is ", config.schedule.min_lr, ", more than lr, which is ",
                                        config.schedule.lr));
  }
  if (config.schedule.warmup_steps > config.steps) {
    fields.Error("warmup_steps", absl::StrCat("is ", config.schedule.warmup_steps,
                                              ", more than steps, which is ", config.steps));
  }
}

void DescribeCheckpoint(ConfigFields& fields, CheckpointConfig& config) {
  fields.Int("every", &config.every, "steps between checkpoints; 0 = only at the end, -1 = never",
             -1, kManySteps);
  fields.Int("keep_last", &config.keep_last, "checkpoints to keep", 1, 1000000);
  fields.Enum("resume", &config.resume, "go on from the run folder's newest checkpoint, or refuse",
              {{"auto", ResumePolicy::kAuto}, {"never", ResumePolicy::kNever}});
  fields.Bool("fallback", &config.fallback,
              "resume from an older checkpoint if the newest is damaged");
  fields.Enum("on_error", &config.on_error, "when a checkpoint cannot be written",
              {{"continue", SaveErrorPolicy::kContinue}, {"stop", SaveErrorPolicy::kStop}});
}

void DescribeRuntime(ConfigFields& fields, RuntimeConfig& config) {
  fields.Enum("device", &config.device, "what computes: cpu, or cuda for one NVIDIA GPU a rank",
              {{"cpu", Device::kCpu}, {"cuda", Device::kCuda}});
  fields.Int("ranks_per_gpu", &config.ranks_per_gpu,
             "ranks that share a GPU; more than 1 for tests", 1, 64);
  fields.Enum("dtype", &config.dtype,
              "of activations and products; auto: float32 on the cpu, bfloat16 with float32 master "
              "weights on cuda",
              {{"auto", RunDType::kAuto},
               {"float32", RunDType::kF32},
               {"float64", RunDType::kF64},
               {"bfloat16", RunDType::kBF16}});
  const bool is_bf16 = config.dtype == RunDType::kBF16;
  if (config.device == Device::kCuda && config.dtype != RunDType::kAuto && !is_bf16) {
    fields.Error("dtype", "cuda computes in bfloat16: leave it out, or set auto");
  }
  if (config.device == Device::kCpu && is_bf16) {
    fields.Error("dtype", "the cpu computes in float32 or float64; bfloat16 takes device: cuda");
  }
  fields.Bool("fp8", &config.fp8,
              "matrix products of the blocks in 8-bit floating point (on cuda, compute capability "
              "8.9 or later): faster, less exact");
  if (config.fp8 && config.device != Device::kCuda) {
    fields.Error("fp8", "takes device: cuda: set that, or remove it");
  }
  fields.Int("threads", &config.threads, "threads a rank; 0 = cores shared among the host's ranks",
             0, 4096);
  fields.Enum("recompute", &config.recompute,
              "activations computed again in the backward pass to save memory",
              {{"none", Recompute::kNone},
               {"mlp", Recompute::kMlp},
               {"all_but_attention", Recompute::kAllButAttention},
               {"layer", Recompute::kLayer}});
  fields.Float("timeout_s", &config.timeout_s, "longest wait for other ranks, seconds", 0.01, 1e7);
  fields.Float("lost_after_s", &config.lost_after_s,
               "with dedicated attention servers: a rank that is silent for so long is lost", 0.1,
               1e7);
  fields.Int("bucket_mb", &config.bucket_mb,
             "MiB of gradients reduced at a time; 0 = 4 on CPUs, 64 on GPUs", 0, 65536);
  fields.Float("peak_gflops", &config.peak_gflops,
               "peak of a rank for mfu; 0 = a matrix product measured at the start", 0, 1e12);
}

void DescribeTrace(ConfigFields& fields, TraceConfig& config) {
  fields.Int("steps", &config.steps,
             "steps whose timeline is written to trace/rank-N.json (opens in ui.perfetto.dev)", 0,
             kManySteps);
  fields.Int("first_step", &config.first_step, "the first of them", 1, kManySteps);
}

}  // namespace

DType ComputeDType(const RuntimeConfig& config) {
  switch (config.dtype) {
    case RunDType::kAuto:
      break;
    case RunDType::kF32:
      return DType::kF32;
    case RunDType::kF64:
      return DType::kF64;
    case RunDType::kBF16:
      return DType::kBF16;
  }
  return config.device == Device::kCuda ? DType::kBF16 : DType::kF32;
}

void DescribeFields(ConfigFields& fields, RunConfig& config) {
  const double unset_lost_after_s = config.runtime.lost_after_s;
  fields.String("folder", &config.folder, "run folder: checkpoints, metrics, plots");
  if (config.folder.empty()) fields.Error("folder", "is empty: name one, such as runs/my_run");
  fields.Int("seed", &config.seed, "of initial weights and sample order", 0, int64_t{1} << 62);
  fields.Section("model", "the model's shape",
                 [&](ConfigFields& section) { DescribeFields(section, config.model); });
  fields.Section("data", "what to train on",
                 [&](ConfigFields& section) { DescribeData(section, config.data); });
  fields.Section("train", "how to train",
                 [&](ConfigFields& section) { DescribeTrain(section, config.train); });
  fields.Section("checkpoint", "when to save, how to resume",
                 [&](ConfigFields& section) { DescribeCheckpoint(section, config.checkpoint); });
  fields.Section("parallel", "how to spread it over the ranks",
                 [&](ConfigFields& section) { DescribeFields(section, config.parallel); });
  fields.Section("runtime", "how to run it on this machine",
                 [&](ConfigFields& section) { DescribeRuntime(section, config.runtime); });
  fields.Section("trace", "where the time of a step goes",
                 [&](ConfigFields& section) { DescribeTrace(section, config.trace); });
  if (std::min(config.train.micro_batch_size, config.train.global_batch_size) >
      kMaxTokensAtOnce / config.data.sequence_length) {
    fields.Error("train.micro_batch_size", absl::StrCat("times data.sequence_length is more than ",
                                                        kMaxTokensAtOnce, " tokens at once"));
  }
  if (config.runtime.lost_after_s != unset_lost_after_s && config.parallel.attention_servers == 0 &&
      !fields.HasError("parallel.attention_servers")) {
    fields.Error("runtime.lost_after_s",
                 "has no effect without dedicated attention servers: remove it, or set "
                 "parallel.attention_servers to a number of them");
  }
  if (config.parallel.tp_transport == RowTransport::kCopyEngines &&
      (config.runtime.device != Device::kCuda || config.parallel.mesh.tp == 1) &&
      !fields.HasError("parallel.tp") && !fields.HasError("runtime.device")) {
    fields.Error("parallel.tp_transport",
                 "copy_engines has no effect without runtime.device: cuda and parallel.tp of 2 or "
                 "more: remove it, or set them");
  }
  const ModelConfig& model = config.model;
  if (model.max_position_embeddings > 0 &&
      config.data.sequence_length > model.max_position_embeddings) {
    fields.Error("data.sequence_length",
                 "is longer than model.max_position_embeddings: the model is not meant for it");
  }
}

absl::StatusOr<RunConfig> ReadRunConfig(const std::string& file,
                                        const std::vector<std::string>& overrides) {
  RunConfig config;
  EK_RETURN_IF_ERROR(
      ReadConfig(file, overrides, [&](ConfigFields& fields) { DescribeFields(fields, config); }));
  if (config.parallel.attention == SoftmaxExchange::kDisaggregated &&
      config.parallel.ping_pong == PingPong::kAuto) {
    config.parallel.ping_pong =
        config.runtime.device == Device::kCuda ? PingPong::kOn : PingPong::kOff;
  }
  return config;
}

std::string ToYaml(const RunConfig& config) {
  RunConfig copy = config;
  return WriteConfig([&](ConfigFields& fields) { DescribeFields(fields, copy); });
}

}  // namespace evenkeel
