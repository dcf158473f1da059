// The configuration of a run: one YAML file, every key also settable with --set section.key=value.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launch/lr_schedule.h"
#include "launch/parallel_config.h"
#include "models/block.h"
#include "models/model_config.h"
#include "runtime/ops/adamw.h"

namespace evenkeel {

class ConfigFields;

enum class NonFinitePolicy { kStop, kSkip };
enum class SaveErrorPolicy { kContinue, kStop };
enum class ResumePolicy { kAuto, kNever };
enum class RunDType { kAuto, kF32, kF64, kBF16 };

struct DataConfig {
  std::string train;       // prefix of .bin and .idx
  std::string validation;  // likewise; "" for none
  int64_t sequence_length = 2048;
};

struct TrainConfig {
  int64_t steps = 100;
  int64_t global_batch_size = 8;  // sequences a step, over all ranks
  int64_t micro_batch_size = 1;   // sequences a replica computes at once
  LrSchedule schedule;            // total_steps is `steps`
  AdamWConfig adamw;
  double clip_norm = 1;  // 0: no clipping
  int64_t eval_every = 0;
  int64_t eval_samples = 64;
  int64_t log_every = 1;
  double max_minutes = 0;
  NonFinitePolicy on_nonfinite = NonFinitePolicy::kStop;
  std::string init_from;  // folder with weights to start from
};

struct CheckpointConfig {
  int64_t every = 0;  // steps; the last step is saved too, unless this is -1
  int64_t keep_last = 2;
  ResumePolicy resume = ResumePolicy::kAuto;
  bool fallback = true;  // take the newest good checkpoint if the newest is damaged
  SaveErrorPolicy on_error = SaveErrorPolicy::kContinue;
};

struct RuntimeConfig {
  Device device = Device::kCpu;
  int64_t ranks_per_gpu = 1;
  RunDType dtype = RunDType::kAuto;
  int64_t threads = 0;  // a rank; 0: the host's cores shared among its ranks
  bool fp8 = false;     // products of the blocks
  Recompute recompute = Recompute::kNone;
  double timeout_s = 300;
  double lost_after_s = 5;  // a rank that is silent for so long is lost (launch/server_line.h)
  int64_t bucket_mb = 0;    // gradients reduced at a time; 0: 4 on CPUs, 64 on GPUs
  double peak_gflops = 0;   // of a rank, for mfu; 0: measured at the start
};

// What ops compute in: what was chosen, or the device's own (float32, bf16 on a GPU).
DType ComputeDType(const RuntimeConfig& config);

// Which steps the timeline shows (RUN/trace).
struct TraceConfig {
  int64_t steps = 0;  // 0: none
  int64_t first_step = 5;
};

struct RunConfig {
  std::string folder = "runs/default";
  int64_t seed = 1;
  ModelConfig model;
  DataConfig data;
  TrainConfig train;
  CheckpointConfig checkpoint;
  ParallelConfig parallel;
  RuntimeConfig runtime;
  TraceConfig trace;
};

// Reads or writes all sections.
void DescribeFields(ConfigFields& fields, RunConfig& config);

// Reads `file` with overrides ("train.steps=10"). All errors at once, each with file, line and key.
absl::StatusOr<RunConfig> ReadRunConfig(const std::string& file,
                                        const std::vector<std::string>& overrides);

// The whole config as YAML, every key with its help.
std::string ToYaml(const RunConfig& config);

}  // namespace evenkeel
