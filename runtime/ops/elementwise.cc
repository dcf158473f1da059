#include "runtime/ops/elementwise.h"

#include <cstring>

#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/row_loops.h"

namespace evenkeel {
namespace {

using row_loops::ForEachRun;
using row_loops::Map;
using simd::Vec;

// Adds the squares of n elements, n at most a block, in float64 with a fixed set of running sums.
template <typename T>
double SquaresOf(const T* x, int64_t n) {
  constexpr int64_t kChains = 16;
  double sums[kChains] = {};
  int64_t i = 0;
  for (; i + kChains <= n; i += kChains) {
    for (int64_t j = 0; j < kChains; ++j) {
      const double value = static_cast<double>(x[i + j]);
      sums[j] += value * value;
    }
  }
  for (int64_t j = 0; i < n; ++i, ++j) {
    const double value = static_cast<double>(x[i]);
    sums[j] += value * value;
  }
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

}  // namespace

void SetZero(const OpContext& context, TensorView x) {
  EK_TRACE_ON_CUDA(context, SetZero, x)
  DispatchFloat(x.dtype, [&]<typename T>() {
    ForEachRun<T>(
        context.pool,
        [](int64_t n, T* out) { std::memset(out, 0, static_cast<size_t>(n) * sizeof(T)); }, x);
  });
}

void Copy(const OpContext& context, ConstTensorView x, TensorView y) {
  EK_TRACE_ON_CUDA(context, Copy, x, y)
  DispatchFloat(x.dtype, [&]<typename T>() {
    ForEachRun<T>(
        context.pool,
        [](int64_t n, const T* in, T* out) {
          std::memcpy(out, in, static_cast<size_t>(n) * sizeof(T));
        },
        x, y);
  });
}

void Add(const OpContext& context, ConstTensorView a, ConstTensorView b, TensorView y) {
  EK_TRACE_ON_CUDA(context, Add, a, b, y)
  DispatchFloat(y.dtype, [&]<typename T>() {
    ForEachRun<T>(
        context.pool,
        [](int64_t n, const T* p, const T* q, T* out) {
          Map<T>(
              n, out, [](Vec<T> v, Vec<T> w) { return v + w; }, p, q);
        },
        a, b, y);
  });
}

void AddWide(const OpContext& context, ConstTensorView x, TensorView sum) {
  EK_TRACE_ON_CUDA(context, AddWide, x, sum)
  Add(context, sum, x, sum);  // on the CPU both dtypes are one
}

void Multiply(const OpContext& context, ConstTensorView a, ConstTensorView b, TensorView y) {
  DispatchFloat(y.dtype, [&]<typename T>() {
    ForEachRun<T>(
        context.pool,
        [](int64_t n, const T* p, const T* q, T* out) {
          Map<T>(
              n, out, [](Vec<T> v, Vec<T> w) { return v * w; }, p, q);
        },
        a, b, y);
  });
}

void Scale(const OpContext& context, double factor, TensorView x) {
  DispatchFloat(x.dtype, [&]<typename T>() {
    const T f = static_cast<T>(factor);
    ForEachRun<T>(
        context.pool,
        [f](int64_t n, T* out) {
          Map<T>(
              n, out, [f](Vec<T> v) { return v * f; }, out);
        },
        x);
  });
}

void AddBias(const OpContext& context, ConstTensorView bias, TensorView x) {
  DispatchFloat(x.dtype, [&]<typename T>() {
    const auto rows = row_loops::RowsOf<T>(x);
    const T* b = bias.as<T>();
    EK_CHECK(bias.num_elements() == rows.columns) << bias.shape.ToString();
    context.pool.ParallelFor(
        rows.count, row_loops::RowGrain(rows.columns), [&](int64_t begin, int64_t end) {
          for (int64_t row = begin; row < end; ++row) {
            Map<T>(
                rows.columns, rows[row], [](Vec<T> v, Vec<T> w) { return v + w; }, rows[row], b);
          }
        });
  });
}

void BiasBackward(const OpContext& context, ConstTensorView dy, TensorView dbias) {
  EK_TRACE_ON_CUDA(context, BiasBackward, dy, dbias)
  DispatchFloat(dy.dtype, [&]<typename T>() {
    const auto rows = row_loops::RowsOf<T>(dy);
    EK_CHECK(dbias.num_elements() == rows.columns) << dbias.shape.ToString();
    row_loops::SumOverRows<T>(
        context, rows.count, rows.columns,
        [&](int64_t begin, int64_t end, T* partial) {
          for (int64_t row = begin; row < end; ++row) {
            Map<T>(
                rows.columns, partial, [](Vec<T> v, Vec<T> w) { return v + w; }, partial,
                rows[row]);
          }
        },
        dbias.as<T>());
  });
}

void AddSum(const OpContext& context, ConstTensorView x, TensorView sum) {
  EK_TRACE_ON_CUDA(context, AddSum, x, sum)
  const double* values = x.as<double>();
  double total = 0;
  for (int64_t i = 0; i < x.num_elements(); ++i) total += values[i];
  *sum.as<double>() += total;
}

void AddSquares(const OpContext& context, ConstTensorView x, TensorView sum) {
  EK_TRACE_ON_CUDA(context, AddSquares, x, sum)
  EK_CHECK(x.is_dense()) << x.shape.ToString();
  DispatchFloat(x.dtype, [&]<typename T>() {
    constexpr int64_t kBlock = 16384;
    const T* data = x.as<T>();
    const int64_t n = x.num_elements(), blocks = (n + kBlock - 1) / kBlock;
    ArenaScope scope(context.arena);
    double* partials =
        context.arena.Allocate(DType::kF64, {blocks}, MemoryPurpose::kWorkspace).as<double>();
    context.pool.ParallelFor(blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        partials[block] = SquaresOf(data + block * kBlock, std::min(kBlock, n - block * kBlock));
      }
    });
    double total = 0;
    for (int64_t block = 0; block < blocks; ++block) total += partials[block];
    *sum.as<double>() += total;
  });
}

}  // namespace evenkeel
