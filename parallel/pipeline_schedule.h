// Pipeline schedules as data: in which order each rank of the pp axis runs the forward and backward
// passes of its micro-batches. Pure; an executor runs them, a timetable foretells how long it
// takes.
//
// A model of num_ranks * num_chunks stages is dealt out in turn: rank r holds the stages
// chunk * num_ranks + r, so that micro-batches go round the ranks num_chunks times.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace evenkeel {

enum class PipelinePhase { kForward, kBackward };

struct PipelineAction {
  PipelinePhase phase = PipelinePhase::kForward;
  int64_t micro_batch = 0;
  int chunk = 0;  // which of the rank's model chunks

  bool operator==(const PipelineAction&) const = default;
};

// All ranks run their forward actions in one common (micro_batch, chunk) order, and their backward
// actions in another. Activations thus arrive at a neighbour in the order in which it needs them,
// and so do gradients; no message has to say which one it is. Only between two ranks with several
// chunks do both go the same way, in orders that may differ: keep them apart by a tag.
struct PipelineSchedule {
  int num_ranks = 1;
  int num_chunks = 1;
  int64_t num_micro_batches = 0;
  std::vector<std::vector<PipelineAction>> actions;  // by rank, in order of execution

  int num_stages() const { return num_ranks * num_chunks; }
  int StageOf(int rank, int chunk) const { return chunk * num_ranks + rank; }
};

// 1F1B: a rank runs as many forwards as there are ranks after it, then one forward and one backward
// in turn, then the backwards that are left (PipeDream-Flush; Narayanan et al., "Efficient
// large-scale language model training on GPU clusters using Megatron-LM", SC 2021). Rank r holds
// the activations of at most ranks - r micro-batches. Any number of micro-batches, zero included.
PipelineSchedule OneForwardOneBackward(int ranks, int64_t micro_batches);

// Interleaved 1F1B (the same paper): micro-batches pass in groups of `ranks`, a group through all
// chunks before the next one. The bubble shrinks by the number of chunks; rank r holds at most
// 2 (ranks - r - 1) + (chunks - 1) ranks + 1 activations, of a stage each. Where the paper wants a
// multiple of `ranks`, any number of micro-batches will do: the schedule is that of the next
// multiple without the micro-batches that are too many. With one chunk it is 1F1B.
PipelineSchedule InterleavedOneForwardOneBackward(int ranks, int chunks, int64_t micro_batches);

// One action of a schedule, by its place.
struct ActionIndex {
  int rank = 0;
  int64_t index = 0;  // in actions[rank]
};

// Returns all actions in an order in which each comes after what it needs: the action before it on
// its rank; for a forward, the same micro-batch's forward on the stage before; for a backward, its
// own forward and the backward on the stage after. If the ranks would wait for each other forever,
// the actions up to there.
std::vector<ActionIndex> DependencyOrder(const PipelineSchedule& schedule);

// Checks that each rank runs every (phase, micro_batch, chunk) once, a backward after its forward,
// that the ranks' orders agree (see PipelineSchedule), and that execution comes to an end.
absl::Status CheckSchedule(const PipelineSchedule& schedule);

// Returns the most activations, of one micro-batch in one chunk each, that `rank` holds at a time.
int64_t PeakInFlight(const PipelineSchedule& schedule, int rank);

// Returns, for each action of the rank, the slot that its activations lie in: a forward takes the
// lowest free one, and its backward, with the same number, sets it free. There are PeakInFlight
// slots, so memory can be set aside beforehand.
std::vector<int> ActivationSlots(const PipelineSchedule& schedule, int rank);

}  // namespace evenkeel
