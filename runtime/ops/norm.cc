#include "runtime/ops/norm.h"

#include <cmath>

#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/row_loops.h"

namespace evenkeel {
namespace {

using row_loops::LoadUpTo;
using row_loops::Rows;
using row_loops::RowsOf;
using row_loops::StoreUpTo;
using simd::Vec;

template <typename T>
T InverseRms(const T* x, int64_t columns, double eps) {
  const T squares = row_loops::MapSum<T>(
      columns, [](Vec<T> v) { return v * v; }, x);
  return static_cast<T>(
      1 / std::sqrt(static_cast<double>(squares) / static_cast<double>(columns) + eps));
}

template <typename T>
void Forward(const OpContext& context, ConstTensorView x, ConstTensorView gain, double eps,
             TensorView y) {
  const auto x_rows = RowsOf<T>(x);
  const auto y_rows = RowsOf<T>(y);
  const T* g = gain.as<T>();
  const int64_t columns = x_rows.columns;
  context.pool.ParallelFor(
      x_rows.count, row_loops::RowGrain(columns), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const T* in = x_rows[row];
          const T r = InverseRms(in, columns, eps);
          if (g == nullptr) {
            row_loops::Map<T>(
                columns, y_rows[row], [r](Vec<T> v) { return v * r; }, in);
          } else {
            row_loops::Map<T>(
                columns, y_rows[row], [r](Vec<T> v, Vec<T> w) { return v * r * w; }, in, g);
          }
        }
      });
}

// One row of the backward pass; dgain [C] is added to, or null.
template <typename T, bool kHasGain>
void BackwardRow(const T* x, const T* gain, double eps, const T* dy, int64_t columns,
                 bool accumulate, T* dx, T* dgain) {
  const T r = InverseRms(x, columns, eps);
  T dot;
  if constexpr (kHasGain) {
    dot = row_loops::MapSum<T>(
        columns, [](Vec<T> v, Vec<T> d, Vec<T> g) { return v * d * g; }, x, dy, gain);
  } else {
    dot = row_loops::MapSum<T>(
        columns, [](Vec<T> v, Vec<T> d) { return v * d; }, x, dy);
  }
  const T mean = dot * r / static_cast<T>(columns);  // mean(xh dy g)
  for (int64_t i = 0; i < columns; i += simd::kLanes<T>) {
    const int64_t left = columns - i;
    const Vec<T> xh = LoadUpTo(x + i, left) * r;
    Vec<T> d = LoadUpTo(dy + i, left);
    if constexpr (kHasGain) {
      StoreUpTo<T>(dgain + i, LoadUpTo(dgain + i, left) + d * xh, left);
      d *= LoadUpTo(gain + i, left);
    }
    Vec<T> out = (d - xh * mean) * r;
    if (accumulate) out += LoadUpTo(dx + i, left);
    StoreUpTo<T>(dx + i, out, left);
  }
}

template <typename T>
void Backward(const OpContext& context, ConstTensorView x, ConstTensorView gain, double eps,
              ConstTensorView dy, TensorView dx, bool accumulate, TensorView dgain) {
  const auto x_rows = RowsOf<T>(x);
  const auto dy_rows = RowsOf<T>(dy);
  const auto dx_rows = RowsOf<T>(dx);
  const int64_t columns = x_rows.columns;
  if (gain.empty()) {
    context.pool.ParallelFor(x_rows.count, row_loops::RowGrain(columns),
                             [&](int64_t begin, int64_t end) {
                               for (int64_t row = begin; row < end; ++row) {
                                 BackwardRow<T, false>(x_rows[row], nullptr, eps, dy_rows[row],
                                                       columns, accumulate, dx_rows[row], nullptr);
                               }
                             });
    return;
  }
  row_loops::SumOverRows<T>(
      context, x_rows.count, columns,
      [&](int64_t begin, int64_t end, T* partial) {
        for (int64_t row = begin; row < end; ++row) {
          BackwardRow<T, true>(x_rows[row], gain.as<T>(), eps, dy_rows[row], columns, accumulate,
                               dx_rows[row], partial);
        }
      },
      dgain.as<T>());
}

}  // namespace

void RmsNormForward(const OpContext& context, ConstTensorView x, ConstTensorView gain, double eps,
                    TensorView y) {
  EK_TRACE_ON_CUDA(context, RmsNormForward, x, gain, eps, y)
  EK_CHECK(y.shape == x.shape && (gain.empty() || gain.num_elements() == x.dim(x.rank() - 1)))
      << x.shape.ToString() << " " << gain.shape.ToString() << " -> " << y.shape.ToString();
  DispatchFloat(x.dtype, [&]<typename T>() { Forward<T>(context, x, gain, eps, y); });
}

void RmsNormBackward(const OpContext& context, ConstTensorView x, ConstTensorView gain, double eps,
                     ConstTensorView dy, TensorView dx, bool accumulate, TensorView dgain) {
  EK_TRACE_ON_CUDA(context, RmsNormBackward, x, gain, eps, dy, dx, accumulate, dgain)
  EK_CHECK(dy.shape == x.shape && dx.shape == x.shape && dgain.empty() == gain.empty() &&
           dgain.shape == gain.shape)
      << x.shape.ToString() << " " << gain.shape.ToString() << " " << dy.shape.ToString() << " "
      << dx.shape.ToString() << " " << dgain.shape.ToString();
  DispatchFloat(x.dtype, [&]<typename T>() {
    Backward<T>(context, x, gain, eps, dy, dx, accumulate, dgain);
  });
}

void GatedRmsNormForward(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                         double eps, TensorView y) {
  EK_TRACE_ON_CUDA(context, GatedRmsNormForward, x, gate, eps, y)
  const ArenaScope scope(context.arena);
  TensorView normed = context.arena.Allocate(x.dtype, x.shape, MemoryPurpose::kWorkspace);
  RmsNormForward(context, x, ConstTensorView(), eps, normed);
  Multiply(context, normed, gate, y);
}

void GatedRmsNormBackward(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                          double eps, ConstTensorView dy, TensorView dx, TensorView dgate) {
  EK_TRACE_ON_CUDA(context, GatedRmsNormBackward, x, gate, eps, dy, dx, dgate)
  const ArenaScope scope(context.arena);
  TensorView normed = context.arena.Allocate(x.dtype, x.shape, MemoryPurpose::kWorkspace);
  RmsNormForward(context, x, ConstTensorView(), eps, normed);
  Multiply(context, dy, normed, dgate);
  Multiply(context, dy, gate, dx);
  RmsNormBackward(context, x, ConstTensorView(), eps, dx, dx, /*accumulate=*/false, TensorView());
}

}  // namespace evenkeel
