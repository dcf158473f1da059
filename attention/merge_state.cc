#include "attention/merge_state.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/kernels/cuda/attention_ops.h"

namespace evenkeel {
namespace {

// Folds one row of one head. The side without keys is left out rather than multiplied by 0, so that
// the identity is exact; NaN in either lse reaches both results.
template <typename T>
void MergeRow(const T* part_out, T part_lse, int64_t size, T* out, T& lse) {
  const T infinity = std::numeric_limits<T>::infinity();
  if (part_lse == -infinity) return;
  if (lse == -infinity) {
    std::copy_n(part_out, size, out);
    lse = part_lse;
    return;
  }
  // With d = the smaller minus the larger: lse = larger + log1p(exp(d)); the weights are
  // 1 / (1 + exp(d)) and exp(d) / (1 + exp(d)).
  const bool part_is_larger = part_lse > lse;
  const T larger = part_is_larger ? part_lse : lse;
  const T ratio = std::exp(part_is_larger ? lse - part_lse : part_lse - lse);
  const T major = 1 / (1 + ratio), minor = ratio / (1 + ratio);
  const T weight = part_is_larger ? minor : major;
  const T part_weight = part_is_larger ? major : minor;
  for (int64_t e = 0; e < size; ++e) out[e] = out[e] * weight + part_out[e] * part_weight;
  lse = larger + std::log1p(ratio);
}

}  // namespace

void MergeState(const OpContext& context, ConstTensorView part_out, ConstTensorView part_lse,
                TensorView out, TensorView lse) {
  EK_CHECK(out.rank() == 3 && part_out.shape == out.shape && part_lse.shape == lse.shape &&
           lse.shape == (Shape{out.dim(0), out.dim(1)}))
      << "merge of " << part_out.shape.ToString() << part_lse.shape.ToString() << " into "
      << out.shape.ToString() << lse.shape.ToString();
  EK_TRACE_ON_CUDA(context, MergeState, part_out, part_lse, out, lse)
  DispatchFloat(out.dtype, [&]<typename T>() {
    const T* part_out_data = part_out.as<T>();
    const T* part_lse_data = part_lse.as<T>();
    T* out_data = out.as<T>();
    T* lse_data = lse.as<T>();
    context.pool.ParallelFor(out.dim(0), 16, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t h = 0; h < out.dim(1); ++h) {
          MergeRow<T>(part_out_data + t * part_out.stride(0) + h * part_out.stride(1),
                      part_lse_data[t * part_lse.stride(0) + h * part_lse.stride(1)], out.dim(2),
                      out_data + t * out.stride(0) + h * out.stride(1),
                      lse_data[t * lse.stride(0) + h * lse.stride(1)]);
        }
      }
    });
  });
}

void SetIdentityState(const OpContext& context, TensorView out, TensorView lse) {
  EK_CHECK(lse.rank() == 2 &&
           (out.empty() || (out.rank() == 3 && lse.shape == (Shape{out.dim(0), out.dim(1)}))))
      << out.shape.ToString() << lse.shape.ToString();
  EK_TRACE_ON_CUDA(context, SetIdentityState, out, lse)
  DispatchFloat(lse.dtype, [&]<typename T>() {
    T* const out_data = out.as<T>();
    T* const lse_data = lse.as<T>();
    context.pool.ParallelFor(lse.dim(0), 16, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t h = 0; h < lse.dim(1); ++h) {
          lse_data[t * lse.stride(0) + h * lse.stride(1)] = -std::numeric_limits<T>::infinity();
          if (out.empty()) continue;
          std::fill_n(out_data + t * out.stride(0) + h * out.stride(1), out.dim(2), T{0});
        }
      }
    });
  });
}

}  // namespace evenkeel
