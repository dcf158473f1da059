#include "runtime/ops/split_norm.h"

#include <cmath>

#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/row_loops.h"

namespace evenkeel {
namespace {

using row_loops::LoadUpTo;
using row_loops::RowsOf;
using row_loops::StoreUpTo;
using simd::Vec;

template <typename T>
T InverseRms(T squares, int64_t columns, double eps) {
  return static_cast<T>(
      1 / std::sqrt(static_cast<double>(squares) / static_cast<double>(columns) + eps));
}

// Rows of a tensor that may be absent.
template <typename T, typename Void>
auto OptionalRows(const BasicTensorView<Void>& view) {
  return view.empty() ? decltype(RowsOf<T>(view)){} : RowsOf<T>(view);
}

void CheckRows(const ConstTensorView& x, const ConstTensorView& gate, const ConstTensorView& sums,
               int64_t columns) {
  EK_CHECK(x.rank() == 2 && (gate.empty() || gate.shape == x.shape) && columns >= x.dim(1) &&
           columns > 0 && sums.is_dense() && sums.num_elements() == x.dim(0))
      << x.shape.ToString() << " of " << columns << " columns, " << gate.shape.ToString() << ", "
      << sums.shape.ToString();
}

// One row of the backward pass; gate and dgate are null where there is none. `mean` is dots /
// columns.
template <typename T>
void BackwardRow(const T* x, const T* gate, const T* dy, int64_t columns, T r, T mean, T* dx,
                 T* dgate) {
  for (int64_t i = 0; i < columns; i += simd::kLanes<T>) {
    const int64_t left = columns - i;
    const Vec<T> xh = LoadUpTo(x + i, left) * r;
    Vec<T> d = LoadUpTo(dy + i, left);
    Vec<T> dg = {};
    if (gate != nullptr) {
      dg = d * xh;
      d *= LoadUpTo(gate + i, left);
    }
    StoreUpTo<T>(dx + i, (d - xh * mean) * r, left);
    if (gate != nullptr) StoreUpTo<T>(dgate + i, dg, left);
  }
}

}  // namespace

void RowSquares(const OpContext& context, ConstTensorView x, TensorView sums) {
  EK_TRACE_ON_CUDA(context, RowSquares, x, sums)
  EK_CHECK(x.rank() == 2 && sums.is_dense() && sums.num_elements() == x.dim(0))
      << x.shape.ToString() << " -> " << sums.shape.ToString();
  DispatchFloat(x.dtype, [&]<typename T>() {
    const auto rows = RowsOf<T>(x);
    T* out = sums.as<T>();
    context.pool.ParallelFor(rows.count, row_loops::RowGrain(rows.columns),
                             [&](int64_t begin, int64_t end) {
                               for (int64_t row = begin; row < end; ++row) {
                                 out[row] = row_loops::MapSum<T>(
                                     rows.columns, [](Vec<T> v) { return v * v; }, rows[row]);
                               }
                             });
  });
}

void SplitNormForward(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                      ConstTensorView sums, int64_t columns, double eps, TensorView y) {
  EK_TRACE_ON_CUDA(context, SplitNormForward, x, gate, sums, columns, eps, y)
  CheckRows(x, gate, sums, columns);
  EK_CHECK(y.shape == x.shape) << x.shape.ToString() << " -> " << y.shape.ToString();
  DispatchFloat(x.dtype, [&]<typename T>() {
    const auto in = RowsOf<T>(x), gates = OptionalRows<T>(gate);
    const auto out = RowsOf<T>(y);
    const T* squares = sums.as<T>();
    context.pool.ParallelFor(
        in.count, row_loops::RowGrain(in.columns), [&](int64_t begin, int64_t end) {
          for (int64_t row = begin; row < end; ++row) {
            const T r = InverseRms(squares[row], columns, eps);
            if (gate.empty()) {
              row_loops::Map<T>(
                  in.columns, out[row], [r](Vec<T> v) { return v * r; }, in[row]);
            } else {
              row_loops::Map<T>(
                  in.columns, out[row], [r](Vec<T> v, Vec<T> g) { return v * r * g; }, in[row],
                  gates[row]);
            }
          }
        });
  });
}

void SplitNormDots(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                   ConstTensorView sums, int64_t columns, double eps, ConstTensorView dy,
                   TensorView dots) {
  EK_TRACE_ON_CUDA(context, SplitNormDots, x, gate, sums, columns, eps, dy, dots)
  CheckRows(x, gate, sums, columns);
  EK_CHECK(dy.shape == x.shape && dots.is_dense() && dots.num_elements() == x.dim(0))
      << x.shape.ToString() << " " << dy.shape.ToString() << " -> " << dots.shape.ToString();
  DispatchFloat(x.dtype, [&]<typename T>() {
    const auto in = RowsOf<T>(x), gates = OptionalRows<T>(gate), d = RowsOf<T>(dy);
    const T* squares = sums.as<T>();
    T* out = dots.as<T>();
    context.pool.ParallelFor(
        in.count, row_loops::RowGrain(in.columns), [&](int64_t begin, int64_t end) {
          for (int64_t row = begin; row < end; ++row) {
            T dot;
            if (gate.empty()) {
              dot = row_loops::MapSum<T>(
                  in.columns, [](Vec<T> v, Vec<T> w) { return v * w; }, in[row], d[row]);
            } else {
              dot = row_loops::MapSum<T>(
                  in.columns, [](Vec<T> v, Vec<T> w, Vec<T> g) { return v * w * g; }, in[row],
                  d[row], gates[row]);
            }
            out[row] = dot * InverseRms(squares[row], columns, eps);
          }
        });
  });
}

void SplitNormBackward(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                       ConstTensorView sums, ConstTensorView dots, int64_t columns, double eps,
                       ConstTensorView dy, TensorView dx, TensorView dgate) {
  EK_TRACE_ON_CUDA(context, SplitNormBackward, x, gate, sums, dots, columns, eps, dy, dx, dgate)
  CheckRows(x, gate, sums, columns);
  CheckRows(x, dgate, dots, columns);
  EK_CHECK(dy.shape == x.shape && dx.shape == x.shape &&
           (dgate.empty() == gate.empty() || x.num_elements() == 0))
      << x.shape.ToString() << " " << dy.shape.ToString() << " -> " << dx.shape.ToString() << " "
      << dgate.shape.ToString();
  DispatchFloat(x.dtype, [&]<typename T>() {
    const auto in = RowsOf<T>(x), gates = OptionalRows<T>(gate), d = RowsOf<T>(dy);
    const auto out = RowsOf<T>(dx), gate_out = OptionalRows<T>(dgate);
    const T* squares = sums.as<T>();
    const T* products = dots.as<T>();
    context.pool.ParallelFor(in.count, row_loops::RowGrain(in.columns),
                             [&](int64_t begin, int64_t end) {
                               for (int64_t row = begin; row < end; ++row) {
                                 const bool gated = !gate.empty();
                                 BackwardRow<T>(in[row], gated ? gates[row] : nullptr, d[row],
                                                in.columns, InverseRms(squares[row], columns, eps),
                                                products[row] / static_cast<T>(columns), out[row],
                                                gated ? gate_out[row] : nullptr);
                               }
                             });
  });
}

}  // namespace evenkeel
