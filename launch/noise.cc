#include "launch/noise.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "runtime/ops/elementwise.h"
#include "runtime/ops/gpu.h"

namespace evenkeel {
namespace {

// Dense; between -1 and 1.
std::vector<char> HostNoise(DType dtype, int64_t count) {
  std::vector<char> bytes(static_cast<size_t>(count * SizeOf(dtype)));
  uint64_t state = 88172645463325252ULL;  // xorshift64
  for (int64_t i = 0; i < count; ++i) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    const double value = static_cast<double>(state >> 11) * 0x1p-52 - 1;
    if (dtype == DType::kF64) {
      std::memcpy(bytes.data() + 8 * i, &value, 8);
      continue;
    }
    const float single = static_cast<float>(value);
    if (dtype == DType::kF32) {
      std::memcpy(bytes.data() + 4 * i, &single, 4);
    } else {  // the upper half of a float32 is a bf16
      std::memcpy(bytes.data() + 2 * i, reinterpret_cast<const char*>(&single) + 2, 2);
    }
  }
  return bytes;
}

}  // namespace

void FillWithNoise(const OpContext& context, const TensorView& x) {
  EK_CHECK(x.rank() == 2 && x.is_dense()) << x.shape.ToString();
  if (x.num_elements() == 0) return;
  // An odd number of rows does not fall in step with blocks of rows that kernels take.
  constexpr int64_t kElements = int64_t{1} << 22;
  int64_t rows = std::min(x.dim(0), (kElements / x.dim(1)) | 1);
  std::vector<char> host = HostNoise(x.dtype, rows * x.dim(1));
  (void)CopyFromHost(context, TensorView(host.data(), x.dtype, {rows, x.dim(1)}), x.Rows(0, rows));
  for (; rows < x.dim(0); rows *= 2) {
    const int64_t more = std::min(rows, x.dim(0) - rows);
    Copy(context, x.Rows(0, more), x.Rows(rows, rows + more));
  }
}

}  // namespace evenkeel
