#include "attention/kernels/softmax_schedule.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <limits>
#include <vector>

#include "attention/kernels/softmax_backward.h"
#include "attention/kernels/softmax_few_queries.h"
#include "attention/kernels/softmax_forward.h"
#include "attention/kernels/softmax_tile.h"

namespace evenkeel {
namespace {

constexpr double kLog2E = 1.4426950408889634074;

int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

template <typename T>
T* AllocateScratch(const OpContext& context, int64_t elements) {
  return context.arena.Allocate(DTypeOf<T>::value, Shape{elements}, MemoryPurpose::kWorkspace)
      .template as<T>();
}

// Calls body(index, scratch) for every index in [0, n), in ascending order of start, with
// `elements` of scratch for each thread.
template <typename T, typename Body>
void ForEachWithScratch(const OpContext& context, int64_t n, int64_t elements, const Body& body) {
  if (n == 0) return;
  ArenaScope scope(context.arena);
  const int64_t stride = PaddedToLanes<T>(elements);
  const int64_t threads = context.pool.num_threads();
  T* scratch = AllocateScratch<T>(context, stride * std::min(threads, n));
  std::atomic<int64_t> next{0};
  const auto run = [&](int thread) {
    if (thread >= n) return;
    for (int64_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) {
      body(i, scratch + thread * stride);
    }
  };
  if (n == 1) {
    run(0);
  } else {
    context.pool.RunOnAll(run);
  }
}

// A piece of the forward pass: a unit of tiles, or one chunk of the keys of a few queries.
template <typename T>
struct ForwardWork {
  SoftmaxForwardUnit unit;
  int64_t chunk = -1;    // >= 0: a chunk of the few queries of unit.task
  T* partial = nullptr;  // its result
  int64_t cost = 0;      // (query, key) pairs
};

// The chunks of one task, to be merged.
template <typename T>
struct FewQueriesWork {
  AttentionTask task;
  int64_t num_chunks = 0;
  T* partials = nullptr;
};

template <Weighting kWeighting>
bool HasFewQueries(const AttentionTask& task) {
  return kWeighting == Weighting::kSoftmax && task.q_len <= kFewQueries;
}

// Appends the units of a task of many queries; those with the most keys first.
template <typename T>
void AppendUnits(const AttentionTask& task, const SoftmaxForwardParams<T>& params,
                 int64_t max_tiles, std::vector<ForwardWork<T>>& work) {
  const int64_t heads_per_unit = std::min(params.group, max_tiles);
  const int64_t queries_per_unit = max_tiles / heads_per_unit * SoftmaxForwardTile<T>();
  const int64_t offset = DiagonalOffset(task);
  for (int64_t u = CeilDiv(task.q_len, queries_per_unit) - 1; u >= 0; --u) {
    for (int64_t g = 0; g < params.num_kv_heads; ++g) {
      for (int64_t h = 0; h < params.group; h += heads_per_unit) {
        ForwardWork<T> item;
        item.unit.task = task;
        item.unit.q_first = u * queries_per_unit;
        item.unit.q_count = std::min(queries_per_unit, task.q_len - item.unit.q_first);
        item.unit.head_first = g * params.group + h;
        item.unit.head_count = std::min(heads_per_unit, params.group - h);
        item.cost = item.unit.head_count * item.unit.q_count *
                    std::min(item.unit.q_first + item.unit.q_count + offset, task.kv_len);
        work.push_back(item);
      }
    }
  }
}

// Computes lse (times log2 e) and delta (times scale) of a task's queries [first, first + count)
// for all heads, and clears their rows of dq. lse, delta [H, q_len].
template <Weighting kWeighting, typename T>
void PrepareBackward(const SoftmaxBackwardParams<T>& params, const AttentionTask& task,
                     int64_t first, int64_t count, T* lse, T* delta) {
  const T infinity = std::numeric_limits<T>::infinity();
  for (int64_t head = 0; head < params.num_kv_heads * params.group; ++head) {
    for (int64_t i = first; i < first + count; ++i) {
      const int64_t row = task.q_begin + i;
      std::fill_n(params.dq.at(row, head), params.head_size, T{0});
      if constexpr (kWeighting == Weighting::kSoftmax) {
        const T row_lse = *params.lse.at(row, head);
        const bool has_keys = row_lse != -infinity;
        lse[head * task.q_len + i] = has_keys ? row_lse * static_cast<T>(kLog2E) : infinity;
        delta[head * task.q_len + i] =
            has_keys
                ? Dot<T>(params.dout.at(row, head), params.out.at(row, head), params.value_size) *
                      static_cast<T>(params.scale)
                : T{0};
      }
    }
  }
}

struct TaskRows {
  int64_t task;
  int64_t first;
  int64_t count;
};

}  // namespace

void CheckTasks(absl::Span<const AttentionTask> tasks, int64_t q_rows, int64_t kv_rows) {
  for (const AttentionTask& task : tasks) {
    EK_CHECK(task.q_begin >= 0 && task.q_len >= 0 && task.q_begin <= q_rows - task.q_len &&
             task.kv_begin >= 0 && task.kv_len >= 0 && task.kv_begin <= kv_rows - task.kv_len)
        << "task: queries " << task.q_begin << " + " << task.q_len << " of " << q_rows << ", keys "
        << task.kv_begin << " + " << task.kv_len << " of " << kv_rows;
    EK_CHECK(task.q_ahead >= 0) << "task: the last query is " << task.q_ahead
                                << " ahead of its keys";
  }
}

std::vector<int64_t> WavesOfTasks(absl::Span<const AttentionTask> tasks) {
  std::vector<int64_t> waves(tasks.size(), 0);
  // Between two neighbouring bounds of key ranges, all keys belong to the same tasks.
  std::vector<int64_t> bounds;
  for (const AttentionTask& task : tasks) {
    bounds.push_back(task.kv_begin);
    bounds.push_back(task.kv_begin + task.kv_len);
  }
  std::sort(bounds.begin(), bounds.end());
  bounds.erase(std::unique(bounds.begin(), bounds.end()), bounds.end());
  std::vector<int64_t> next_wave(bounds.size(), 0);
  for (size_t t = 0; t < tasks.size(); ++t) {
    const auto at = [&](int64_t bound) {
      return std::lower_bound(bounds.begin(), bounds.end(), bound) - bounds.begin();
    };
    const auto begin = next_wave.begin() + at(tasks[t].kv_begin);
    const auto end = next_wave.begin() + at(tasks[t].kv_begin + tasks[t].kv_len);
    if (begin == end) continue;
    waves[t] = *std::max_element(begin, end);
    std::fill(begin, end, waves[t] + 1);
  }
  return waves;
}

template <Weighting kWeighting, typename T>
void RunSoftmaxForward(const OpContext& context, absl::Span<const AttentionTask> tasks,
                       const SoftmaxForwardParams<T>& params) {
  ArenaScope scope(context.arena);
  int64_t total_tiles = 0;
  for (const AttentionTask& task : tasks) {
    total_tiles +=
        CeilDiv(task.q_len, SoftmaxForwardTile<T>()) * params.group * params.num_kv_heads;
  }
  // Enough units for an even balance, but not smaller than that asks for: each packs its keys anew.
  const int64_t threads = context.pool.num_threads();
  int64_t max_tiles = SoftmaxForwardMaxTiles(params);
  if (threads > 1) max_tiles = std::clamp<int64_t>(total_tiles / (8 * threads), 1, max_tiles);

  std::vector<ForwardWork<T>> work;
  std::vector<FewQueriesWork<T>> merges;
  bool has_tiles = false, has_few = false;
  for (const AttentionTask& task : tasks) {
    if (task.q_len == 0) continue;
    if (!HasFewQueries<kWeighting>(task)) {
      AppendUnits(task, params, max_tiles, work);
      has_tiles = true;
      continue;
    }
    has_few = true;
    const int64_t partial_size = FewQueriesPartial(params, task);
    FewQueriesWork<T> merge{task, CeilDiv(task.kv_len, kFewQueriesChunk), nullptr};
    merge.partials = AllocateScratch<T>(context, partial_size * merge.num_chunks);
    for (int64_t c = 0; c < merge.num_chunks; ++c) {
      ForwardWork<T> item;
      item.unit.task = task;
      item.chunk = c;
      item.partial = merge.partials + c * partial_size;
      item.cost = params.num_kv_heads * params.group * task.q_len *
                  std::min(kFewQueriesChunk, task.kv_len - c * kFewQueriesChunk);
      work.push_back(item);
    }
    merges.push_back(merge);
  }
  if (threads > 1) {
    std::stable_sort(work.begin(), work.end(),
                     [](const auto& a, const auto& b) { return a.cost > b.cost; });
  }
  int64_t scratch_elements = 0;
  if (has_tiles) scratch_elements = SoftmaxForwardScratch(params, max_tiles);
  if (has_few) scratch_elements = std::max(scratch_elements, FewQueriesScratch(params));
  ForEachWithScratch<T>(
      context, static_cast<int64_t>(work.size()), scratch_elements, [&](int64_t i, T* scratch) {
        const ForwardWork<T>& item = work[static_cast<size_t>(i)];
        if (item.chunk < 0) {
          SoftmaxForward<kWeighting, T>(params, item.unit, scratch);
        } else {
          FewQueriesForward<T>(params, item.unit.task, item.chunk, scratch, item.partial);
        }
      });
  context.pool.ParallelForEach(static_cast<int64_t>(merges.size()), [&](int64_t i) {
    const FewQueriesWork<T>& merge = merges[static_cast<size_t>(i)];
    FewQueriesMerge<T>(params, merge.task, merge.num_chunks, merge.partials);
  });
}

template <Weighting kWeighting, typename T>
void RunSoftmaxBackward(const OpContext& context, absl::Span<const AttentionTask> tasks,
                        const SoftmaxBackwardParams<T>& params) {
  constexpr int64_t kRowsPerPiece = 64;
  ArenaScope scope(context.arena);
  const int64_t num_heads = params.num_kv_heads * params.group;
  std::vector<int64_t> offsets;  // of each task's lse and delta
  std::vector<TaskRows> pieces;
  int64_t total = 0;
  for (size_t t = 0; t < tasks.size(); ++t) {
    offsets.push_back(total);
    total += tasks[t].q_len * num_heads;
    for (int64_t row = 0; row < tasks[t].q_len; row += kRowsPerPiece) {
      pieces.push_back(
          {static_cast<int64_t>(t), row, std::min(kRowsPerPiece, tasks[t].q_len - row)});
    }
  }
  const bool is_softmax = kWeighting == Weighting::kSoftmax;
  T* lse = is_softmax ? AllocateScratch<T>(context, total) : nullptr;
  T* delta = is_softmax ? AllocateScratch<T>(context, total) : nullptr;
  context.pool.ParallelForEach(static_cast<int64_t>(pieces.size()), [&](int64_t i) {
    const TaskRows& piece = pieces[static_cast<size_t>(i)];
    const int64_t offset = offsets[static_cast<size_t>(piece.task)];
    PrepareBackward<kWeighting, T>(params, tasks[static_cast<size_t>(piece.task)], piece.first,
                                   piece.count, is_softmax ? lse + offset : nullptr,
                                   is_softmax ? delta + offset : nullptr);
  });

  const std::vector<int64_t> waves = WavesOfTasks(tasks);
  const int64_t num_waves = waves.empty() ? 0 : *std::max_element(waves.begin(), waves.end()) + 1;
  std::vector<std::vector<size_t>> tasks_of_wave(static_cast<size_t>(num_waves));
  for (size_t t = 0; t < tasks.size(); ++t) {
    if (tasks[t].q_len > 0) tasks_of_wave[static_cast<size_t>(waves[t])].push_back(t);
  }
  for (const std::vector<size_t>& wave : tasks_of_wave) {
    std::vector<SoftmaxBackwardColumn<T>> columns;
    int64_t most_keys = 0;
    for (size_t t : wave) {
      const AttentionTask& task = tasks[t];
      const int64_t column_keys = SoftmaxBackwardColumnKeys(params, task.kv_len);
      most_keys = std::max(most_keys, column_keys);
      for (int64_t key = 0; key < task.kv_len; key += column_keys) {
        for (int64_t g = 0; g < params.num_kv_heads; ++g) {
          SoftmaxBackwardColumn<T> column;
          column.task = task;
          column.kv_head = g;
          column.key_first = key;
          column.key_count = std::min(column_keys, task.kv_len - key);
          if (is_softmax) {
            const int64_t offset = offsets[t] + g * params.group * task.q_len;
            column.lse = lse + offset;
            column.delta = delta + offset;
          }
          columns.push_back(column);
        }
      }
    }
    // A column waits only for columns before it in the list, which have been started: no deadlock.
    std::vector<std::atomic<int64_t>> done(columns.size());
    for (size_t i = 0; i < columns.size(); ++i) {
      columns[i].done = &done[i];
      if (columns[i].key_first > 0) {
        columns[i].previous_done = &done[i - static_cast<size_t>(params.num_kv_heads)];
      }
    }
    ForEachWithScratch<T>(context, static_cast<int64_t>(columns.size()),
                          SoftmaxBackwardScratch(params, most_keys), [&](int64_t i, T* scratch) {
                            SoftmaxBackward<kWeighting, T>(params, columns[static_cast<size_t>(i)],
                                                           scratch);
                          });
  }
}

template void RunSoftmaxForward<Weighting::kSoftmax>(const OpContext&,
                                                     absl::Span<const AttentionTask>,
                                                     const SoftmaxForwardParams<float>&);
template void RunSoftmaxForward<Weighting::kSoftmax>(const OpContext&,
                                                     absl::Span<const AttentionTask>,
                                                     const SoftmaxForwardParams<double>&);
template void RunSoftmaxForward<Weighting::kRelu>(const OpContext&, absl::Span<const AttentionTask>,
                                                  const SoftmaxForwardParams<float>&);
template void RunSoftmaxForward<Weighting::kRelu>(const OpContext&, absl::Span<const AttentionTask>,
                                                  const SoftmaxForwardParams<double>&);
template void RunSoftmaxBackward<Weighting::kSoftmax>(const OpContext&,
                                                      absl::Span<const AttentionTask>,
                                                      const SoftmaxBackwardParams<float>&);
template void RunSoftmaxBackward<Weighting::kSoftmax>(const OpContext&,
                                                      absl::Span<const AttentionTask>,
                                                      const SoftmaxBackwardParams<double>&);
template void RunSoftmaxBackward<Weighting::kRelu>(const OpContext&,
                                                   absl::Span<const AttentionTask>,
                                                   const SoftmaxBackwardParams<float>&);
template void RunSoftmaxBackward<Weighting::kRelu>(const OpContext&,
                                                   absl::Span<const AttentionTask>,
                                                   const SoftmaxBackwardParams<double>&);

}  // namespace evenkeel
