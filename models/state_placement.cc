#include "models/state_placement.h"

#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "runtime/base/status_macros.h"

namespace evenkeel {
namespace {

// Calls body(owned, whole, count) for each run of elements that the rank owns: [owned, ...) of its
// buffers is [whole, ...) of the whole.
template <typename Body>
void ForEachPlace(const RankPlacement& rank, const ParameterLayout& whole, const Body& body) {
  std::map<std::string, int64_t> offset_of;
  for (const ParameterSpec& spec : whole.specs()) offset_of[spec.name] = spec.offset;
  for (const ParameterSpec& spec : rank.layout.specs()) {
    const int64_t base = offset_of.at(spec.name);
    ForEachRun(spec, [&](int64_t local, int64_t full, int64_t count) {
      const int64_t run = spec.offset + local;
      ForEachOwnedRun(rank.owned, run, count, [&](int64_t to, int64_t first, int64_t length) {
        body(to, base + full + first - run, length);
      });
    });
  }
}

// Copies between owned and whole buffers of one dtype.
void Place(const RankPlacement& rank, const ParameterLayout& whole, TensorView owned,
           TensorView all, bool to_whole) {
  const int64_t bytes = SizeOf(owned.dtype);
  auto* mine = static_cast<char*>(owned.data);
  auto* full = static_cast<char*>(all.data);
  ForEachPlace(rank, whole, [&](int64_t at, int64_t whole_at, int64_t count) {
    char* const a = mine + at * bytes;
    char* const b = full + whole_at * bytes;
    std::memcpy(to_whole ? b : a, to_whole ? a : b, static_cast<size_t>(count * bytes));
  });
}

// Whether the rank's owned buffers are the whole ones.
bool IsSame(const StateViews& mine, const StateViews& whole) {
  return mine[0].data == whole[0].data;
}

}  // namespace

Placement Replicated(const ModelConfig& config) {
  const ParameterLayout layout(config);
  return [layout](int rank) {
    return RankPlacement{layout, OwnedRanges(layout.unit_begin(), ShardingStage::kNone, 1, 0),
                         rank == 0};
  };
}

absl::Status GatherState(Communicator& comm, const Placement& placement,
                         const ParameterLayout& whole, StateViews mine, StateViews whole_views) {
  if (comm.rank() > 0) {
    if (!placement(comm.rank()).is_source) return absl::OkStatus();
    for (const TensorView& view : mine) {
      const SendTo send{0, view};
      EK_RETURN_IF_ERROR(comm.SendRecv({&send, 1}, {}, "state for the checkpoint"));
    }
    return absl::OkStatus();
  }
  for (int rank = 0; rank < comm.size(); ++rank) {
    const RankPlacement place = placement(rank);
    if (!place.is_source) continue;
    std::vector<char> buffer;
    for (size_t i = 0; i < mine.size(); ++i) {
      TensorView owned = mine[i];
      if (rank == 0) {
        if (IsSame(mine, whole_views)) break;
      } else {
        buffer.resize(static_cast<size_t>(place.num_owned() * SizeOf(owned.dtype)));
        owned = TensorView(buffer.data(), owned.dtype, {place.num_owned()});
        const ReceiveFrom receive{rank, owned};
        EK_RETURN_IF_ERROR(comm.SendRecv({}, {&receive, 1}, "state for the checkpoint"));
      }
      Place(place, whole, owned, whole_views[i], /*to_whole=*/true);
    }
  }
  return absl::OkStatus();
}

absl::Status ScatterState(Communicator& comm, const Placement& placement,
                          const ParameterLayout& whole, StateViews whole_views, StateViews mine) {
  if (comm.rank() > 0) {
    for (const TensorView& view : mine) {
      const ReceiveFrom receive{0, view};
      EK_RETURN_IF_ERROR(comm.SendRecv({}, {&receive, 1}, "state of the checkpoint"));
    }
    return absl::OkStatus();
  }
  for (int rank = 0; rank < comm.size(); ++rank) {
    const RankPlacement place = placement(rank);
    std::vector<char> buffer;
    for (size_t i = 0; i < mine.size(); ++i) {
      if (rank == 0) {
        if (IsSame(mine, whole_views)) break;
        Place(place, whole, mine[i], whole_views[i], /*to_whole=*/false);
        continue;
      }
      buffer.assign(static_cast<size_t>(place.num_owned() * SizeOf(mine[i].dtype)), 0);
      const TensorView owned(buffer.data(), mine[i].dtype, {place.num_owned()});
      Place(place, whole, owned, whole_views[i], /*to_whole=*/false);
      const SendTo send{rank, owned};
      EK_RETURN_IF_ERROR(comm.SendRecv({&send, 1}, {}, "state of the checkpoint"));
    }
  }
  return absl::OkStatus();
}

}  // namespace evenkeel
