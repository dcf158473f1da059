// The training loop: the program's centre, read it top to bottom.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "launch/attention_planner.h"
#include "launch/rank_runtime.h"
#include "launch/run_config.h"
#include "launch/run_report.h"
#include "launch/server_line.h"
#include "launch/step_tracer.h"
#include "launch/training_data.h"
#include "launch/training_state.h"
#include "models/model.h"
#include "models/optimizer.h"
#include "models/pipeline_run.h"
#include "parallel/mesh_comms.h"
#include "runtime/checkpoint/run_lock.h"
#include "runtime/comm/communicator.h"
#include "runtime/ops/op_context.h"
#include "scheduler/model_shape.h"

namespace evenkeel {

// The ranks of the mesh, where there are dedicated attention servers beside them; else of nulls.
struct MeshRanks {
  std::unique_ptr<Communicator> comm;
  std::unique_ptr<ServerLine> servers;
};

// One rank's trainer. Every rank makes the same calls.
class Trainer {
 public:
  // Opens the data, builds the model, and restores the newest checkpoint of the run folder if there
  // is one. Rank 0 takes the run folder's lock. `plan`: the config's, for the ranks of `rank.comm`.
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(const RunConfig& config, ParallelPlan plan,
                                                         const RankRuntime& rank,
                                                         MeshRanks mesh_ranks);

  // Trains to the configured step. A request to stop (signal, STOP file, wall-time limit) saves and
  // returns a status with ExitCode::kPreempted; a loss that is not finite one with kDiverged; too
  // few attention servers left save too, with kPeersLost.
  absl::Status Run();

  const TrainingProgress& progress() const { return progress_; }
  // Of the last step that this process took, if it took one.
  std::optional<double> last_loss() const { return last_loss_; }

 private:
  struct StepResult {
    double loss = 0;
    double grad_norm = 0;
    int64_t valid_tokens = 0;
    double model_flops = 0;
    double exposed_comm_seconds = 0;
    // Over the ranks of the mesh.
    double mean_exposed_seconds = 0, least_exposed_seconds = 0, most_exposed_seconds = 0;
    double sent_bytes = 0;
    double data_seconds = 0;
    bool applied = false;  // false: no token had a target, or the step was not finite
    bool stop_requested = false;
  };

  Trainer(const RunConfig& config, const RankRuntime& rank, ParallelPlan plan, MeshRanks mesh_ranks,
          std::unique_ptr<MeshComms> mesh, TrainingData data, Model model, Optimizer optimizer);

  // Takes the run folder, restores or draws the weights, and says what there is to do.
  absl::Status Start();
  void ReportStart(bool restored);
  absl::Status RunSteps();
  absl::StatusOr<StepResult> Step();
  // Has the scales of FP8 tensors follow the largest values of the step, of all ranks.
  absl::Status LearnFp8Scales();
  absl::Status ReportStep(const StepResult& result, double seconds);
  // Takes from the run's history which step was evaluated last.
  absl::Status RecallEvaluation();
  // Does nothing where the present step was evaluated already, also by an earlier process.
  absl::Status EvaluateHeldOut();
  // Losses of this replica's samples of a round: with attention of its own, or of the pool.
  absl::Status ScoreSamples(int64_t round, absl::Span<const PackedBatch> batches,
                            std::vector<TokenLosses>* losses);
  absl::Status Save();
  // Of a step or an evaluation that failed as too few servers are left: saves.
  absl::Status SaveWithoutServers();
  // Forward and backward of the step's batches, to gradients that are whole. sums [2]: of the
  // losses, and of the squares of the gradient.
  absl::Status ComputeGradients(const std::vector<PackedBatch>& batches, double scale,
                                TensorView sums);
  absl::Status TrainBatches(const std::vector<PackedBatch>& batches, double scale,
                            TensorView loss_sum);
  absl::Status MakePlanner();
  PoolSetup Pool() const;
  // What the pool's servers measured in the pass, to report and to plan with: of dedicated ones
  // before the pass is believed (none: one was lost, and what the pass left behind is not to be
  // used), else when the step's results are here, so that a GPU has not to be waited for twice.
  absl::StatusOr<std::optional<PoolLoads>> CollectServerLoads();
  absl::Status ShareLoads();
  RankLoad TakeLoad();
  void NoteLoads(const PoolLoads& pool);
  // Tells the servers what comes next.
  absl::Status OrderServers(PoolWork work, int64_t round);
  // Goes on without the servers that were lost. `redone`: what is computed again.
  absl::Status ReplaceServers(int64_t step, const char* redone);
  absl::StatusOr<std::vector<PackedBatch>> ReadBatches(double* model_flops);
  // Whether no other rank computes the losses of the same tokens.
  bool CountsLosses() const;
  bool StopRequested() const;
  double Elapsed() const;

  RunConfig config_;
  OpContext context_;
  Communicator& world_;  // with dedicated attention servers
  MeshRanks mesh_ranks_;
  Communicator& comm_;  // the ranks of the mesh
  GpuComm* gpu_comm_;   // null where the ranks compute on CPUs, or there is one
  MemoryTracker& tracker_;
  ParallelPlan plan_;
  std::unique_ptr<MeshComms> mesh_;
  TrainingData data_;
  std::optional<HeldOutData> held_out_;
  Model model_;
  Optimizer optimizer_;
  PipelineRun pipeline_;
  std::unique_ptr<AttentionPlanner> attention_planner_;  // with disaggregated attention
  AttentionMetrics attention_;                           // of the step
  std::vector<ServerLoad> loads_;  // of the pass before, until servers are told
  bool has_too_few_servers_ = false;
  ModelShape shape_;
  TrainingProgress progress_;
  std::optional<StepTracer> tracer_;
  StartClock& start_clock_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  double peak_flops_ = 0;  // of a rank
  std::optional<double> last_loss_;
  int64_t saved_step_ = -1;
  int64_t evaluated_step_ = -1;

  // Rank 0 only.
  std::optional<RunLock> lock_;
  std::optional<CheckpointStore> store_;
  std::optional<RunReport> report_;
};

}  // namespace evenkeel
