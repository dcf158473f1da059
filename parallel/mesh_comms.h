// The communicators of a rank on the mesh, and what the layers of a model see of them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/axis_comm.h"
#include "parallel/mesh.h"
#include "runtime/comm/communicator.h"

namespace evenkeel {

// Axes as a model uses them; null where this rank is alone on one.
struct ModelAxes {
  AxisComm* tp = nullptr;         // the heads and columns of a layer
  AxisComm* cp = nullptr;         // the tokens of a micro-batch
  AxisComm* data = nullptr;       // dp x cp: the ranks with the same parameters
  AxisComm* key_value = nullptr;  // tensor-parallel ranks that hold the same key/value head
  AxisComm* stages = nullptr;     // pp: all stages
  AxisComm* tied = nullptr;       // first and last stage, which share the embedding
};

// Directed links of a pipeline, a communicator each: a send that waits for its receiver holds up
// nothing else. Rank 0 of a link is the sender of activations, rank 1 the sender of gradients. Null
// where there is no such neighbour; the last stage links to the first if stages are interleaved.
struct PipelineLinks {
  AxisComm* forward_from_previous = nullptr;
  AxisComm* forward_to_next = nullptr;
  AxisComm* backward_from_next = nullptr;
  AxisComm* backward_to_previous = nullptr;
};

struct MeshCommsOptions {
  MeshShape shape;
  int key_value_copies = 1;      // neighbouring tensor-parallel ranks with the same key/value head
  bool ties_stages = false;      // first and last stage share the embedding
  bool is_interleaved = false;   // several model chunks a rank: the last stage links to the first
  bool pools_attention = false;  // ranks of one tensor-parallel place share core attention
  // Ranks beyond those of the mesh that are on no axis but the pool: tensor-parallel places in
  // turn. A multiple of tp.
  int num_dedicated = 0;
  bool copies_tp_rows = false;  // rows of tp go by copy engines (Communicator::UsePeerCopies)
  // On the device of the communicators, [1]: a first message over every link of the pipeline. NCCL
  // connects two ranks in the host's first call, which waits for the other rank's: better here than
  // in the middle of a schedule, where that one may wait for this one. Empty: no message.
  TensorView scratch;
};

class MeshComms {
 public:
  // Divides `world`, whose ranks are numbered as MeshShape says. Collective over it; it must
  // outlive the result. For tensors of the host or of GPUs, as `world` is.
  static absl::StatusOr<std::unique_ptr<MeshComms>> Create(Communicator& world,
                                                           const MeshCommsOptions& options);

  const MeshShape& shape() const { return shape_; }
  const MeshCoord& coord() const { return coord_; }
  const ModelAxes& axes() const { return axes_; }
  const PipelineLinks& links() const { return links_; }
  // All ranks of this one's tensor-parallel place, in the order of pp, dp, cp, and dedicated ones;
  // null without pools_attention, or for one alone.
  AxisComm* pool() const { return pool_; }
  // Lets the pool's calls end when one of its ranks is gone (Communicator::SetInterrupt).
  void SetPoolInterrupt(std::function<bool()> is_interrupted);
  // In place of the pool one of the ranks of the mesh and these dedicated servers, by number: rank
  // shape.num_ranks() + server * tp + place of `world`, on which nothing may be under way on any of
  // their ranks. All of them call it, and no others; the pool has no interrupt.
  absl::Status RemakePool(Communicator& world, absl::Span<const int> servers);
  CommLog& log() { return log_; }

 private:
  MeshComms() = default;
  // Ranks with the same color form an axis. Null for one rank alone, and for a negative color.
  absl::StatusOr<AxisComm*> Divide(Communicator& world, int color, int key, const char* name);
  absl::Status MakeLinks(Communicator& world, const MeshCommsOptions& options);

  MeshShape shape_;
  MeshCoord coord_;
  CommLog log_;
  std::vector<std::unique_ptr<Communicator>> comms_;
  std::vector<std::unique_ptr<AxisComm>> all_axes_;
  ModelAxes axes_;
  AxisComm* pool_ = nullptr;
  Communicator* pool_comm_ = nullptr;
  PipelineLinks links_;
  bool is_dedicated_ = false;
};

}  // namespace evenkeel
