#include "runtime/ops/activation.h"

#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/row_loops.h"

namespace evenkeel {
namespace {

using row_loops::ForEachRun;
using row_loops::LoadUpTo;
using row_loops::Map;
using row_loops::StoreUpTo;
using simd::Vec;

// simd::Exp says nothing about NaN. Each function below therefore lets x itself into its result
// wherever x is NaN: by a product, or by comparisons that are false for NaN.

template <typename T>
Vec<T> Sigmoid(Vec<T> x) {
  return T{1} / (T{1} + simd::Exp<T>(-x));
}

// exp(x) - 1 for x <= 0. Near zero by its Taylor series, where the difference would cancel.
template <typename T>
Vec<T> ExpMinusOne(Vec<T> x) {
  constexpr int kTerms = sizeof(T) == 4 ? 8 : 14;  // |x| <= 0.35: remainder below half an ulp
  Vec<T> series = simd::Splat<T>(1);
  for (int i = kTerms; i >= 2; --i) series = series * x * (T{1} / static_cast<T>(i)) + T{1};
  return x > T(-0.35) ? x * series : simd::Exp<T>(x) - T{1};
}

// The functions and their derivatives, lane by lane.
template <typename T>
struct Silu {
  static Vec<T> Value(Vec<T> x) { return x * Sigmoid<T>(x); }
  static Vec<T> Derivative(Vec<T> x) {
    const Vec<T> s = Sigmoid<T>(x);
    return s + x * s * (T{1} - s);
  }
};

template <typename T>
struct Elu {
  static Vec<T> Value(Vec<T> x) { return x <= T{0} ? ExpMinusOne<T>(x) : x; }
  static Vec<T> Derivative(Vec<T> x) {
    return x <= T{0} ? simd::Exp<T>(x) : (x > T{0} ? simd::Splat<T>(1) : x);
  }
};

template <typename T>
struct OneElu {
  static Vec<T> Value(Vec<T> x) { return x <= T{0} ? simd::Exp<T>(x) : x + T{1}; }
  static Vec<T> Derivative(Vec<T> x) { return Elu<T>::Derivative(x); }
};

template <typename T, typename Function>
void Forward(const OpContext& context, ConstTensorView x, TensorView y) {
  ForEachRun<T>(
      context.pool,
      [](int64_t n, const T* in, T* out) {
        Map<T>(
            n, out, [](Vec<T> v) { return Function::Value(v); }, in);
      },
      x, y);
}

template <typename T, typename Function>
void Backward(const OpContext& context, ConstTensorView x, ConstTensorView dy, TensorView dx) {
  ForEachRun<T>(
      context.pool,
      [](int64_t n, const T* in, const T* d, T* out) {
        Map<T>(
            n, out, [](Vec<T> v, Vec<T> w) { return w * Function::Derivative(v); }, in, d);
      },
      x, dy, dx);
}

template <typename T, GatedUnit kUnit>
void GatedForwardRow(const T* gate, const T* up, int64_t n, T* h) {
  Map<T>(
      n, h,
      [](Vec<T> g, Vec<T> u) {
        if constexpr (kUnit == GatedUnit::kSwiGlu) return Silu<T>::Value(g) * u;
        return g * u;
      },
      gate, up);
}

// dgate and dup may be gate and up, and h (unless it is null) may be dh: a vector of all is read
// before any is written.
template <typename T, GatedUnit kUnit>
void GatedBackwardRow(const T* gate, const T* up, const T* dh, int64_t n, T* dgate, T* dup, T* h) {
  for (int64_t i = 0; i < n; i += simd::kLanes<T>) {
    const Vec<T> g = LoadUpTo(gate + i, n - i), u = LoadUpTo(up + i, n - i);
    const Vec<T> d = LoadUpTo(dh + i, n - i);
    if constexpr (kUnit == GatedUnit::kSwiGlu) {
      const Vec<T> s = Sigmoid<T>(g), silu = g * s;
      StoreUpTo<T>(dgate + i, d * u * (s + silu * (T{1} - s)), n - i);
      StoreUpTo<T>(dup + i, d * silu, n - i);
      if (h != nullptr) StoreUpTo<T>(h + i, silu * u, n - i);
    } else {
      StoreUpTo<T>(dgate + i, d * u, n - i);
      StoreUpTo<T>(dup + i, d * g, n - i);
      if (h != nullptr) StoreUpTo<T>(h + i, g * u, n - i);
    }
  }
}

template <typename T, GatedUnit kUnit>
void GatedForward(const OpContext& context, ConstTensorView pair, TensorView h) {
  const auto in = row_loops::RowsOf<T>(pair);
  const auto out = row_loops::RowsOf<T>(h);
  const int64_t n = out.columns;
  context.pool.ParallelFor(out.count, row_loops::RowGrain(n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      GatedForwardRow<T, kUnit>(in[row], in[row] + n, n, out[row]);
    }
  });
}

template <typename T, GatedUnit kUnit>
void GatedBackward(const OpContext& context, ConstTensorView pair, ConstTensorView dh,
                   TensorView dpair, TensorView h) {
  const auto in = row_loops::RowsOf<T>(pair);
  const auto d = row_loops::RowsOf<T>(dh);
  const auto out = row_loops::RowsOf<T>(dpair);
  const auto again = h.empty() ? row_loops::Rows<T>() : row_loops::RowsOf<T>(h);
  const int64_t n = d.columns;
  context.pool.ParallelFor(d.count, row_loops::RowGrain(n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      GatedBackwardRow<T, kUnit>(in[row], in[row] + n, d[row], n, out[row], out[row] + n,
                                 h.empty() ? nullptr : again[row]);
    }
  });
}

}  // namespace

void ActivationForward(const OpContext& context, Activation activation, ConstTensorView x,
                       TensorView y) {
  EK_TRACE_ON_CUDA(context, ActivationForward, activation, x, y)
  EK_CHECK(x.shape == y.shape) << x.shape.ToString() << " -> " << y.shape.ToString();
  DispatchFloat(x.dtype, [&]<typename T>() {
    switch (activation) {
      case Activation::kSilu:
        return Forward<T, Silu<T>>(context, x, y);
      case Activation::kElu:
        return Forward<T, Elu<T>>(context, x, y);
      case Activation::kOneElu:
        return Forward<T, OneElu<T>>(context, x, y);
    }
  });
}

void ActivationBackward(const OpContext& context, Activation activation, ConstTensorView x,
                        ConstTensorView dy, TensorView dx) {
  EK_TRACE_ON_CUDA(context, ActivationBackward, activation, x, dy, dx)
  EK_CHECK(x.shape == dy.shape && x.shape == dx.shape)
      << x.shape.ToString() << " " << dy.shape.ToString() << " -> " << dx.shape.ToString();
  DispatchFloat(x.dtype, [&]<typename T>() {
    switch (activation) {
      case Activation::kSilu:
        return Backward<T, Silu<T>>(context, x, dy, dx);
      case Activation::kElu:
        return Backward<T, Elu<T>>(context, x, dy, dx);
      case Activation::kOneElu:
        return Backward<T, OneElu<T>>(context, x, dy, dx);
    }
  });
}

void GatedUnitForward(const OpContext& context, GatedUnit unit, ConstTensorView pair,
                      TensorView h) {
  EK_TRACE_ON_CUDA(context, GatedUnitForward, unit, pair, h)
  EK_CHECK(pair.dim(0) == h.dim(0) && pair.dim(1) == 2 * h.dim(1))
      << pair.shape.ToString() << " -> " << h.shape.ToString();
  DispatchFloat(h.dtype, [&]<typename T>() {
    switch (unit) {
      case GatedUnit::kSwiGlu:
        return GatedForward<T, GatedUnit::kSwiGlu>(context, pair, h);
      case GatedUnit::kSglu:
        return GatedForward<T, GatedUnit::kSglu>(context, pair, h);
    }
  });
}

void GatedUnitBackward(const OpContext& context, GatedUnit unit, ConstTensorView pair,
                       ConstTensorView dh, TensorView dpair, TensorView h) {
  EK_TRACE_ON_CUDA(context, GatedUnitBackward, unit, pair, dh, dpair, h)
  EK_CHECK(pair.dim(0) == dh.dim(0) && pair.dim(1) == 2 * dh.dim(1) && dpair.shape == pair.shape)
      << pair.shape.ToString() << " " << dh.shape.ToString() << " -> " << dpair.shape.ToString();
  DispatchFloat(dh.dtype, [&]<typename T>() {
    switch (unit) {
      case GatedUnit::kSwiGlu:
        return GatedBackward<T, GatedUnit::kSwiGlu>(context, pair, dh, dpair, h);
      case GatedUnit::kSglu:
        return GatedBackward<T, GatedUnit::kSglu>(context, pair, dh, dpair, h);
    }
  });
}

}  // namespace evenkeel
