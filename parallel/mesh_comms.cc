#include "parallel/mesh_comms.h"

#include "runtime/base/log.h"
#include "runtime/base/status_macros.h"

namespace evenkeel {

namespace {

void FirstMessage(AxisComm& link, int from, const TensorView& scratch) {
  const SendTo send{1 - from, scratch};
  const ReceiveFrom receive{from, scratch};
  const bool is_sender = link.rank() == from;
  Work work = link.SendRecvAsync({&send, is_sender ? size_t{1} : 0},
                                 {&receive, is_sender ? size_t{0} : 1}, "first message");
  link.Wait(work);
}

}  // namespace

absl::StatusOr<AxisComm*> MeshComms::Divide(Communicator& world, int color, int key,
                                            const char* name) {
  EK_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> part,
                      world.Split(is_dedicated_ ? -1 : color, key, name));
  if (part == nullptr || part->size() == 1) {
    if (part != nullptr) comms_.push_back(std::move(part));
    return nullptr;
  }
  comms_.push_back(std::move(part));
  all_axes_.push_back(std::make_unique<AxisComm>(*comms_.back(), name, log_));
  return all_axes_.back().get();
}

absl::StatusOr<std::unique_ptr<MeshComms>> MeshComms::Create(Communicator& world,
                                                             const MeshCommsOptions& options) {
  auto comms = std::unique_ptr<MeshComms>(new MeshComms);
  const MeshShape& shape = options.shape;
  comms->is_dedicated_ = world.rank() >= shape.num_ranks();
  MeshCoord at;
  if (comms->is_dedicated_) {
    at.tp = static_cast<int>((world.rank() - shape.num_ranks()) % shape.tp);
  } else {
    EK_ASSIGN_OR_RETURN(at, CoordOfRank(shape, world.size() - options.num_dedicated, world.rank()));
  }
  comms->shape_ = shape;
  comms->coord_ = at;
  ModelAxes& axes = comms->axes_;
  // Only axes of this mesh are split off; every rank makes the same calls.
  const int inside = (at.dp * shape.cp + at.cp) * shape.tp + at.tp;
  if (shape.tp > 1) {
    EK_ASSIGN_OR_RETURN(axes.tp, comms->Divide(world, world.rank() / shape.tp, at.tp, "tp"));
    if (axes.tp != nullptr && options.copies_tp_rows) {
      EK_ASSIGN_OR_RETURN(const bool copies, comms->comms_.back()->UsePeerCopies());
      if (!copies && axes.tp->rank() == 0) {
        LogWarning("tp ranks do not reach each other's memory: NCCL moves their rows");
      }
    }
  }
  if (options.key_value_copies > 1) {
    EK_ASSIGN_OR_RETURN(
        axes.key_value,
        comms->Divide(world, world.rank() / options.key_value_copies, at.tp, "key/value"));
  }
  if (shape.cp > 1) {
    const int color = (at.pp * shape.dp + at.dp) * shape.tp + at.tp;
    EK_ASSIGN_OR_RETURN(axes.cp, comms->Divide(world, color, at.cp, "cp"));
  }
  if (shape.dp > 1 && shape.cp > 1) {
    EK_ASSIGN_OR_RETURN(axes.data, comms->Divide(world, at.pp * shape.tp + at.tp,
                                                 at.dp * shape.cp + at.cp, "data"));
  } else if (shape.dp > 1) {
    const int color = (at.pp * shape.cp + at.cp) * shape.tp + at.tp;
    EK_ASSIGN_OR_RETURN(axes.data, comms->Divide(world, color, at.dp, "data"));
  } else if (shape.cp > 1) {
    // The same ranks, but calls of its own: gradients travel while layers exchange tokens.
    const int color = (at.pp * shape.dp + at.dp) * shape.tp + at.tp;
    EK_ASSIGN_OR_RETURN(axes.data, comms->Divide(world, color, at.cp, "data"));
  }
  if (shape.pp > 1) {
    EK_ASSIGN_OR_RETURN(axes.stages, comms->Divide(world, inside, at.pp, "pp"));
    if (options.ties_stages) {
      const bool is_end = at.pp == 0 || at.pp == shape.pp - 1;
      EK_ASSIGN_OR_RETURN(axes.tied,
                          comms->Divide(world, is_end ? inside : -1, at.pp, "tied embedding"));
    }
    EK_RETURN_IF_ERROR(comms->MakeLinks(world, options));
  }
  if (options.pools_attention) {
    comms->is_dedicated_ = false;  // is on this one
    EK_ASSIGN_OR_RETURN(comms->pool_, comms->Divide(world, at.tp, world.rank(), "pool"));
    if (comms->pool_ != nullptr) {
      comms->pool_comm_ = comms->comms_.back().get();
      EK_RETURN_IF_ERROR(comms->pool_comm_->ConnectPairs());  // each plan sends between others
    }
  }
  comms->log_.ClearVolumes();
  return comms;
}

void MeshComms::SetPoolInterrupt(std::function<bool()> is_interrupted) {
  if (pool_comm_ != nullptr) pool_comm_->SetInterrupt(std::move(is_interrupted));
}

absl::Status MeshComms::RemakePool(Communicator& world, absl::Span<const int> servers) {
  std::vector<int> ranks;
  const auto num_ranks = static_cast<int>(shape_.num_ranks());
  for (int r = coord_.tp; r < num_ranks; r += shape_.tp) ranks.push_back(r);
  for (const int server : servers) ranks.push_back(num_ranks + server * shape_.tp + coord_.tp);
  EK_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> pool, world.MakeGroup(ranks, "pool"));
  // Those of before stay: the program may still read or write where their calls were interrupted.
  comms_.push_back(std::move(pool));
  pool_comm_ = comms_.back().get();
  EK_RETURN_IF_ERROR(pool_comm_->ConnectPairs());
  all_axes_.push_back(std::make_unique<AxisComm>(*pool_comm_, "pool", log_));
  pool_ = all_axes_.back().get();
  return absl::OkStatus();
}

// Link i leads from stage i to stage i + 1 (the last one back to the first). A rank is on two links
// at most; those of even and of odd number are made in two rounds, and where the last one's round
// is that of the first, it has a round of its own.
absl::Status MeshComms::MakeLinks(Communicator& world, const MeshCommsOptions& options) {
  const bool is_interleaved = options.is_interleaved;
  const int stages = shape_.pp, at = coord_.pp;
  const int inner = shape_.dp * shape_.cp * shape_.tp;
  const int inside = (coord_.dp * shape_.cp + coord_.cp) * shape_.tp + coord_.tp;
  const int num_links = is_interleaved ? stages : stages - 1;
  const auto round_of = [&](int link) {
    return link == stages - 1 && stages % 2 == 1 ? 2 : link % 2;
  };
  const int out = !is_dedicated_ && at < num_links ? at : -1;
  const int in = is_dedicated_ ? -1 : at > 0 ? at - 1 : (is_interleaved ? stages - 1 : -1);
  for (int round = 0; round < (is_interleaved && stages % 2 == 1 ? 3 : 2); ++round) {
    int link = -1;
    if (out >= 0 && round_of(out) == round) link = out;
    if (in >= 0 && round_of(in) == round) link = in;
    const bool is_sender = link == out;
    const int color = link < 0 ? -1 : link * inner + inside;
    EK_ASSIGN_OR_RETURN(AxisComm* const forward,
                        Divide(world, color, is_sender ? 0 : 1, "pp forward"));
    EK_ASSIGN_OR_RETURN(AxisComm* const backward,
                        Divide(world, color, is_sender ? 0 : 1, "pp backward"));
    if (link < 0) continue;
    if (!options.scratch.empty()) {
      FirstMessage(*forward, /*from=*/0, options.scratch);
      FirstMessage(*backward, /*from=*/1, options.scratch);
    }
    if (is_sender) {
      links_.forward_to_next = forward;
      links_.backward_from_next = backward;
    } else {
      links_.forward_from_previous = forward;
      links_.backward_to_previous = backward;
    }
  }
  return log_.status();
}

}  // namespace evenkeel
