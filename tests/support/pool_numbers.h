// Plans of pooled attention as numbers, everything that tells one from another: tests compare them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "attention/pool_step.h"
#include "attention/server_exchange.h"

namespace evenkeel::testing_support {

using PlanNumbers = std::vector<int64_t>;

inline void Append(PlanNumbers& numbers, std::initializer_list<int64_t> more) {
  numbers.insert(numbers.end(), more.begin(), more.end());
}

inline PlanNumbers NumbersOf(const ServerExchange& exchange) {
  PlanNumbers numbers;
  for (const RowRoute* route : {&exchange.queries, &exchange.keys}) {
    Append(numbers, {route->num_sent, route->num_held});
    for (const auto* list : {&route->sent, &route->kept}) {
      Append(numbers, {static_cast<int64_t>(list->size())});
      for (const RowRange& range : *list) Append(numbers, {range.from, range.to, range.count});
    }
    for (const auto* list : {&route->sends, &route->receives}) {
      Append(numbers, {static_cast<int64_t>(list->size())});
      for (const RowMessage& m : *list) Append(numbers, {m.peer, m.begin, m.count, m.round});
    }
  }
  for (const auto* list : {&exchange.resident_list, &exchange.task_list}) {
    Append(numbers, {static_cast<int64_t>(list->size())});
    for (const AttentionTask& task : *list) {
      Append(numbers, {task.q_begin, task.q_len, task.kv_begin, task.kv_len});
    }
  }
  return numbers;
}

inline PlanNumbers NumbersOf(const KeyGradientList& list) {
  PlanNumbers numbers(list.terms);
  for (const RowSegment& segment : list.segments) {
    Append(numbers, {segment.to, segment.count, segment.first_term, segment.num_terms});
  }
  return numbers;
}

inline PlanNumbers NumbersOf(const PoolStep& step) {
  PlanNumbers numbers;
  const auto add = [&](const PlanNumbers& more) {
    numbers.insert(numbers.end(), more.begin(), more.end());
  };
  for (const PoolTick& tick : step.ticks) {
    Append(numbers, {tick.tick.phase == PipelinePhase::kForward, tick.tick.index});
    for (const int layer : tick.layer_of) Append(numbers, {layer});
    for (const auto& layer : tick.layers) {
      for (int n = 0; n < 2; ++n) {
        add(NumbersOf(layer->nano[n]));
        add(NumbersOf(layer->sums[n]));
      }
    }
  }
  return numbers;
}

}  // namespace evenkeel::testing_support
