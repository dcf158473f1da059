// How core attention spreads over context-parallel ranks, as a choice: attention/ carries it out,
// scheduler/ foretells what it costs.
#pragma once

#include "parallel/sequence_layout.h"

namespace evenkeel {

// How queries meet the keys of other ranks in softmax layers.
enum class SoftmaxExchange {
  kGather,   // every rank gathers all keys and values (WLB-LLM, Wang et al., 2025)
  kRing,     // keys and values go round, a rank's at a time (Ring Attention, Liu et al., 2023)
  kUlysses,  // tokens are exchanged for heads and back (DeepSpeed-Ulysses, Jacobs et al., 2023)
  // Attention servers compute what a plan gives them (DistCA, 2025), over data-, context- and
  // pipeline-parallel ranks alike.
  kDisaggregated,
};

// How the state reaches the next piece of a sequence in linear layers.
enum class StateExchange {
  kGather,  // every rank gathers what all pieces add to it (LASP-2, Sun et al., 2025)
  kScan,    // from piece to piece, a few heads at a time (ZeCO, Chou et al., 2025)
};

struct ContextStrategy {
  SequenceSplit split = SequenceSplit::kZigzag;
  SoftmaxExchange softmax = SoftmaxExchange::kGather;
  StateExchange states = StateExchange::kGather;
};

}  // namespace evenkeel
