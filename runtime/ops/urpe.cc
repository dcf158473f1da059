#include "runtime/ops/urpe.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "runtime/ops/cuda/cuda_ops.h"

namespace evenkeel {
namespace {

// x -= 2 u (u . x); its own inverse and transpose.
template <typename T>
void Reflect(const T* u, int64_t size, T* x) {
  T dot = 0;
  for (int64_t j = 0; j < size; ++j) dot += u[j] * x[j];
  for (int64_t j = 0; j < size; ++j) x[j] -= 2 * dot * u[j];
}

}  // namespace

void UrpeForward(const OpContext& context, ConstTensorView x, ConstTensorView theta,
                 ConstTensorView reflection, Positions positions, TensorView y) {
  EK_TRACE_ON_CUDA(context, UrpeForward, x, theta, reflection, positions, y)
  DispatchFloat(x.dtype, [&]<typename T>() {
    const int64_t heads = x.dim(1), size = x.dim(2);
    const T* angles = theta.as<T>();
    const T* u = reflection.as<T>();
    context.pool.ParallelFor(x.dim(0), 16, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const double position = static_cast<double>(positions[t]);
        for (int64_t h = 0; h < heads; ++h) {
          const T* in = x.as<T>() + t * x.stride(0) + h * x.stride(1);
          T* out = y.as<T>() + t * y.stride(0) + h * y.stride(1);
          if (out != in) std::copy(in, in + size, out);
          Reflect(u, size, out);
          for (int64_t j = 0; j < size / 2; ++j) {
            const double a = static_cast<double>(angles[j]) * position;
            const T c = static_cast<T>(std::cos(a)), s = static_cast<T>(std::sin(a));
            const T even = out[2 * j], odd = out[2 * j + 1];
            out[2 * j] = even * c - odd * s;
            out[2 * j + 1] = odd * c + even * s;
          }
        }
      }
    });
  });
}

void UrpeBackward(const OpContext& context, ConstTensorView y, ConstTensorView theta,
                  ConstTensorView reflection, Positions positions, ConstTensorView dy,
                  TensorView dx, TensorView dtheta) {
  EK_TRACE_ON_CUDA(context, UrpeBackward, y, theta, reflection, positions, dy, dx, dtheta)
  DispatchFloat(y.dtype, [&]<typename T>() {
    const int64_t tokens = y.dim(0), heads = y.dim(1), size = y.dim(2);
    const T* angles = theta.as<T>();
    const T* u = reflection.as<T>();
    // Rows are summed in fixed blocks, blocks in ascending order: the same sum for any thread
    // count.
    constexpr int64_t kRows = 64;
    const int64_t blocks = (tokens + kRows - 1) / kRows;
    std::vector<double> sums(static_cast<size_t>(blocks * (size / 2)), 0.0);
    context.pool.ParallelForEach(blocks, [&](int64_t block) {
      double* sum = sums.data() + block * (size / 2);
      for (int64_t t = block * kRows; t < std::min(tokens, (block + 1) * kRows); ++t) {
        const double position = static_cast<double>(positions[t]);
        for (int64_t h = 0; h < heads; ++h) {
          const T* out = y.as<T>() + t * y.stride(0) + h * y.stride(1);
          const T* grad = dy.as<T>() + t * dy.stride(0) + h * dy.stride(1);
          T* in_grad = dx.as<T>() + t * dx.stride(0) + h * dx.stride(1);
          for (int64_t j = 0; j < size / 2; ++j) {
            const double a = static_cast<double>(angles[j]) * position;
            const T c = static_cast<T>(std::cos(a)), s = static_cast<T>(std::sin(a));
            const T even = grad[2 * j], odd = grad[2 * j + 1];
            // d(y_even, y_odd)/da = (-y_odd, y_even)
            sum[j] += position * static_cast<double>(odd * out[2 * j] - even * out[2 * j + 1]);
            in_grad[2 * j] = even * c + odd * s;
            in_grad[2 * j + 1] = odd * c - even * s;
          }
          Reflect(u, size, in_grad);
        }
      }
    });
    T* total = dtheta.as<T>();
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t j = 0; j < size / 2; ++j) {
        total[j] += static_cast<T>(sums[static_cast<size_t>(block * (size / 2) + j)]);
      }
    }
  });
}

}  // namespace evenkeel
