#include <algorithm>
#include <array>
#include <cmath>

#include "runtime/ops/activation.h"
#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/position.h"
#include "runtime/ops/row_loops.h"

// Every token, head and dimension has an angle of its own, and a sine costs more than all else
// here. Positions mostly count up, so an angle is split at multiples of kPeriod,
//   theta p = theta base + theta offset,  base = p - p mod kPeriod,
// and the two parts' sines and cosines, each from the library in float64, are combined by the
// addition theorems. The values depend on theta and p alone, not on where a token stands.
namespace evenkeel {
namespace {

constexpr int64_t kPeriod = 32;
constexpr int64_t kChunk = 64;  // dimensions whose base angles are kept on the stack

// cos and sin of theta * offset for the offsets that occur, each [kPeriod, H D].
struct OffsetTable {
  const double* cos = nullptr;
  const double* sin = nullptr;
};

template <typename T>
OffsetTable MakeOffsetTable(const OpContext& context, const T* theta, int64_t width,
                            absl::Span<const int64_t> positions) {
  std::array<bool, kPeriod> occurs = {};
  for (int64_t position : positions) occurs[static_cast<size_t>(position % kPeriod)] = true;
  double* table =
      context.arena.Allocate(DType::kF64, {2, kPeriod, width}, MemoryPurpose::kWorkspace)
          .template as<double>();
  double* cos = table;
  double* sin = table + kPeriod * width;
  context.pool.ParallelForEach(kPeriod, [&](int64_t offset) {
    if (!occurs[static_cast<size_t>(offset)]) return;
    for (int64_t i = 0; i < width; ++i) {
      const double angle = static_cast<double>(theta[i]) * static_cast<double>(offset);
      cos[offset * width + i] = std::cos(angle);
      sin[offset * width + i] = std::sin(angle);
    }
  });
  return {cos, sin};
}

// The cosines and sines of n consecutive dimensions of one head, for positions of one base.
struct Angles {
  const double* base_cos;    // [n]
  const double* base_sin;    // [n]
  const double* offset_cos;  // [n]
  const double* offset_sin;  // [n]

  double cos(int64_t i) const { return base_cos[i] * offset_cos[i] - base_sin[i] * offset_sin[i]; }
  double sin(int64_t i) const { return base_sin[i] * offset_cos[i] + base_cos[i] * offset_sin[i]; }
};

// Calls body(t, h, d, n, angles) for tokens [begin, end), every head and every chunk [d, d + n) of
// its dimensions; each (h, d) sees its tokens in ascending order.
template <typename T, typename Body>
void ForEachChunk(const OffsetTable& table, const T* theta, int64_t heads, int64_t head_dim,
                  absl::Span<const int64_t> positions, int64_t begin, int64_t end,
                  const Body& body) {
  const auto position_of = [&](int64_t t) { return positions[static_cast<size_t>(t)]; };
  double base_cos[kChunk], base_sin[kChunk];
  for (int64_t first = begin, last; first < end; first = last) {
    const int64_t period = position_of(first) / kPeriod;
    last = first + 1;
    while (last < end && position_of(last) / kPeriod == period) ++last;
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t d = 0; d < head_dim; d += kChunk) {
        const int64_t n = std::min(kChunk, head_dim - d), column = h * head_dim + d;
        for (int64_t i = 0; i < n; ++i) {
          const double angle =
              static_cast<double>(theta[column + i]) * static_cast<double>(period * kPeriod);
          base_cos[i] = std::cos(angle);
          base_sin[i] = std::sin(angle);
        }
        for (int64_t t = first; t < last; ++t) {
          const int64_t at = position_of(t) % kPeriod * heads * head_dim + column;
          body(t, h, d, n, Angles{base_cos, base_sin, table.cos + at, table.sin + at});
        }
      }
    }
  }
}

template <typename T>
void ForwardChunk(const Angles& angles, const T* __restrict x, int64_t n, T* __restrict y_cos,
                  T* __restrict y_sin) {
  for (int64_t i = 0; i < n; ++i) {
    y_cos[i] = x[i] * static_cast<T>(angles.cos(i));
    y_sin[i] = x[i] * static_cast<T>(angles.sin(i));
  }
}

template <typename T>
void BackwardChunk(const Angles& angles, double position, const T* __restrict x,
                   const T* __restrict dy_cos, const T* __restrict dy_sin, int64_t n,
                   T* __restrict dx, double* __restrict dtheta) {
  for (int64_t i = 0; i < n; ++i) {
    const double c = angles.cos(i), s = angles.sin(i);
    const double dc = static_cast<double>(dy_cos[i]), ds = static_cast<double>(dy_sin[i]);
    dx[i] = static_cast<T>(dc * c + ds * s);
    dtheta[i] += position * static_cast<double>(x[i]) * (ds * c - dc * s);
  }
}

void CheckShapes(ConstTensorView x, ConstTensorView theta, absl::Span<const int64_t> positions,
                 ConstTensorView y) {
  EK_CHECK(x.rank() == 3 && y.rank() == 3 && theta.rank() == 2 && theta.is_dense() &&
           theta.dim(0) == x.dim(1) && theta.dim(1) == x.dim(2) && y.dim(0) == x.dim(0) &&
           y.dim(1) == x.dim(1) && y.dim(2) == 2 * x.dim(2) &&
           x.dim(0) == static_cast<int64_t>(positions.size()))
      << x.shape.ToString() << " " << theta.shape.ToString() << " " << y.shape.ToString();
}

}  // namespace

void LrpeForward(const OpContext& context, ConstTensorView x, ConstTensorView theta,
                 absl::Span<const int64_t> positions, TensorView y) {
  CheckShapes(x, theta, positions, y);
  const int64_t heads = x.dim(1), head_dim = x.dim(2);
  DispatchFloat(x.dtype, [&]<typename T>() {
    ArenaScope scope(context.arena);
    const T* angle_rates = theta.as<T>();
    const OffsetTable table = MakeOffsetTable(context, angle_rates, heads * head_dim, positions);
    const T* in = x.as<T>();
    T* out = y.as<T>();
    context.pool.ParallelFor(x.dim(0), kPeriod, [&](int64_t begin, int64_t end) {
      ForEachChunk(table, angle_rates, heads, head_dim, positions, begin, end,
                   [&](int64_t t, int64_t h, int64_t d, int64_t n, const Angles& angles) {
                     T* y_cos = out + t * y.stride(0) + h * y.stride(1) + d;
                     ForwardChunk<T>(angles, in + t * x.stride(0) + h * x.stride(1) + d, n, y_cos,
                                     y_cos + head_dim);
                   });
    });
  });
}

void LrpeBackward(const OpContext& context, ConstTensorView x, ConstTensorView theta,
                  absl::Span<const int64_t> positions, ConstTensorView dy, TensorView dx,
                  TensorView dtheta) {
  CheckShapes(x, theta, positions, dy);
  EK_CHECK(dx.shape == x.shape && dtheta.shape == theta.shape && dtheta.is_dense())
      << dx.shape.ToString() << " " << dtheta.shape.ToString();
  const int64_t heads = x.dim(1), head_dim = x.dim(2);
  DispatchFloat(x.dtype, [&]<typename T>() {
    ArenaScope scope(context.arena);
    const T* angle_rates = theta.as<T>();
    const OffsetTable table = MakeOffsetTable(context, angle_rates, heads * head_dim, positions);
    const T* in = x.as<T>();
    const T* d_out = dy.as<T>();
    T* d_in = dx.as<T>();
    row_loops::SumOverRows<double>(
        context, x.dim(0), heads * head_dim,
        [&](int64_t begin, int64_t end, double* partial) {
          ForEachChunk(table, angle_rates, heads, head_dim, positions, begin, end,
                       [&](int64_t t, int64_t h, int64_t d, int64_t n, const Angles& angles) {
                         const T* dy_cos = d_out + t * dy.stride(0) + h * dy.stride(1) + d;
                         BackwardChunk<T>(
                             angles, static_cast<double>(positions[static_cast<size_t>(t)]),
                             in + t * x.stride(0) + h * x.stride(1) + d, dy_cos, dy_cos + head_dim,
                             n, d_in + t * dx.stride(0) + h * dx.stride(1) + d,
                             partial + h * head_dim + d);
                       });
        },
        dtheta.as<T>());
  });
}

void ActivatedLrpeForward(const OpContext& context, Activation activation, ConstTensorView x,
                          ConstTensorView theta, Positions positions, TensorView y) {
  EK_TRACE_ON_CUDA(context, ActivatedLrpeForward, activation, x, theta, positions, y)
  const ArenaScope scope(context.arena);
  TensorView activated = context.arena.Allocate(x.dtype, x.shape, MemoryPurpose::kWorkspace);
  ActivationForward(context, activation, x, activated);
  LrpeForward(context, activated, theta, positions.host, y);
}

void ActivatedLrpeBackward(const OpContext& context, Activation activation, ConstTensorView x,
                           ConstTensorView theta, Positions positions, ConstTensorView dy,
                           TensorView dx, TensorView dtheta) {
  EK_TRACE_ON_CUDA(context, ActivatedLrpeBackward, activation, x, theta, positions, dy, dx, dtheta)
  const ArenaScope scope(context.arena);
  TensorView activated = context.arena.Allocate(x.dtype, x.shape, MemoryPurpose::kWorkspace);
  ActivationForward(context, activation, x, activated);
  LrpeBackward(context, activated, theta, positions.host, dy, dx, dtheta);
  ActivationBackward(context, activation, x, dx, dx);
}

}  // namespace evenkeel
