#include "runtime/ops/fill_normal.h"

#include "runtime/base/philox.h"
#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/row_loops.h"

namespace evenkeel {

void FillNormal(const OpContext& context, uint64_t seed, uint64_t stream, int64_t first,
                double scale, TensorView y) {
  EK_CHECK(y.is_dense()) << y.shape.ToString();
  EK_PASS_ON_TO_CUDA(context, FillNormal(context, seed, stream, first, scale, y))
  const Philox random(seed, stream);
  DispatchFloat(y.dtype, [&]<typename T>() {
    T* const out = y.as<T>();
    context.pool.ParallelFor(y.num_elements(), 1024, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        out[i] = static_cast<T>(scale * random.Normal(static_cast<uint64_t>(first + i)));
      }
    });
  });
}

}  // namespace evenkeel
