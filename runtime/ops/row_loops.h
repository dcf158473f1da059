// How the ops walk their views: runs of contiguous elements for element-wise work, rows of the last
// dimension for norms and sums, and vector loads and stores whose last one may be partial. Private
// to this folder.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "runtime/base/simd.h"
#include "runtime/ops/op_context.h"

namespace evenkeel::row_loops {

// Elements a thread takes at least: below this, waking another thread costs more than it saves.
constexpr int64_t kMinElementsPerThread = 4096;

// Rows whose contributions to a sum over rows are added up by one thread, in ascending order. The
// blocks' sums are then added in ascending order, so the result depends on the shape alone.
constexpr int64_t kRowsPerBlock = 256;

// The first min(n, lanes) elements at p; the other lanes are zero. Element-wise loops use it for
// whole and partial vectors alike, so that a value never depends on where in a row it stands.
template <typename T>
inline simd::Vec<T> LoadUpTo(const T* p, int64_t n) {
  if (n >= simd::kLanes<T>) return simd::Load(p);
  simd::Vec<T> v = {};
  std::memcpy(&v, p, static_cast<size_t>(n) * sizeof(T));
  return v;
}

template <typename T>
inline void StoreUpTo(T* p, simd::Vec<T> v, int64_t n) {
  if (n >= simd::kLanes<T>) return simd::Store(p, v);
  std::memcpy(p, &v, static_cast<size_t>(n) * sizeof(T));
}

// out[i] = f(in[i]...), a vector at a time; `out` may be one of the inputs.
template <typename T, typename F, typename... In>
inline void Map(int64_t n, T* out, const F& f, const In*... in) {
  for (int64_t i = 0; i < n; i += simd::kLanes<T>) {
    StoreUpTo<T>(out + i, f(LoadUpTo<T>(in + i, n - i)...), n - i);
  }
}

// Sum of f(in[i]...), a vector at a time; f must return zero for lanes of zeros.
template <typename T, typename F, typename... In>
inline T MapSum(int64_t n, const F& f, const In*... in) {
  constexpr int64_t kLanes = simd::kLanes<T>;
  simd::Vec<T> sums[4] = {};  // four chains of additions, to hide their latency
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int64_t j = 0; j < 4; ++j) sums[j] += f(simd::Load<T>(in + i + j * kLanes)...);
  }
  for (; i < n; i += kLanes) sums[0] += f(LoadUpTo<T>(in + i, n - i)...);
  return simd::Sum<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// A view of rank 2 or 3 as rows of its last dimension.
template <typename T>
struct Rows {
  T* data = nullptr;
  int64_t count = 0;
  int64_t columns = 0;
  int64_t inner = 1;  // rows per outer step
  int64_t outer_stride = 0;
  int64_t inner_stride = 0;

  T* operator[](int64_t row) const {
    if (inner == 1) return data + row * outer_stride;
    return data + row / inner * outer_stride + row % inner * inner_stride;
  }
};

template <typename T, typename Void>
auto RowsOf(const BasicTensorView<Void>& view) {
  EK_CHECK(view.rank() == 2 || view.rank() == 3) << view.shape.ToString();
  Rows<std::remove_pointer_t<decltype(view.template as<T>())>> rows;
  rows.data = view.template as<T>();
  rows.columns = view.dim(view.rank() - 1);
  rows.count = view.dim(0);
  rows.outer_stride = view.stride(0);
  if (view.rank() == 2) return rows;
  rows.count *= view.dim(1);
  if (view.dim(0) <= 1 || view.stride(0) == view.dim(1) * view.stride(1)) {
    rows.outer_stride = view.stride(1);  // evenly spaced rows: no division per row
  } else {
    rows.inner = view.dim(1);
    rows.inner_stride = view.stride(1);
  }
  return rows;
}

// Rows a thread takes at least, for rows of `columns` elements.
inline int64_t RowGrain(int64_t columns) {
  return std::max<int64_t>(1, kMinElementsPerThread / std::max<int64_t>(1, columns));
}

// Calls body(n, pointers...) on runs of contiguous elements that together cover views of one shape:
// long pieces of dense views, else rows.
template <typename T, typename Body, typename... Views>
void ForEachRun(ThreadPool& pool, const Body& body, const Views&... views) {
  if ((views.is_dense() && ...)) {
    const int64_t n = std::max({views.num_elements()...});
    EK_CHECK(((views.num_elements() == n) && ...)) << n;
    pool.ParallelFor(n, kMinElementsPerThread, [&](int64_t begin, int64_t end) {
      body(end - begin, (views.template as<T>() + begin)...);
    });
    return;
  }
  [&](const auto&... rows) {
    const int64_t count = std::max({rows.count...}), columns = std::max({rows.columns...});
    EK_CHECK(((rows.count == count && rows.columns == columns) && ...)) << count << " " << columns;
    pool.ParallelFor(count, RowGrain(columns), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) body(columns, rows[row]...);
    });
  }(RowsOf<T>(views)...);
}

// sum[j] += sum of rows [0, rows) of f(row)[j] in an order fixed by `rows` alone. body(begin, end,
// partial) adds rows [begin, end) to partial [columns], which holds zeros. Sum is what the partial
// sums are kept in.
template <typename Sum, typename T, typename Body>
void SumOverRows(const OpContext& context, int64_t rows, int64_t columns, const Body& body,
                 T* sum) {
  ArenaScope scope(context.arena);
  const int64_t blocks = (rows + kRowsPerBlock - 1) / kRowsPerBlock;
  Sum* partials =
      context.arena.AllocateZero(DTypeOf<Sum>::value, {blocks, columns}, MemoryPurpose::kWorkspace)
          .template as<Sum>();
  context.pool.ParallelForEach(blocks, [&](int64_t block) {
    body(block * kRowsPerBlock, std::min(rows, (block + 1) * kRowsPerBlock),
         partials + block * columns);
  });
  const int64_t grain = std::max<int64_t>(64, kMinElementsPerThread / std::max<int64_t>(1, blocks));
  context.pool.ParallelFor(columns, grain, [&](int64_t begin, int64_t end) {
    for (int64_t block = 0; block < blocks; ++block) {
      const Sum* partial = partials + block * columns;
      for (int64_t j = begin; j < end; ++j) sum[j] = static_cast<T>(sum[j] + partial[j]);
    }
  });
}

}  // namespace evenkeel::row_loops
