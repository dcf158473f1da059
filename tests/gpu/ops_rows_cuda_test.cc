// Sums of tensors.
#include "runtime/ops/elementwise.h"
#include "tests/gpu/ops_cuda_fixture.h"

namespace evenkeel {
namespace {

class RowsCudaTest : public GpuOpsTest {};

struct Size {
  int64_t rows, columns, width, begin;  // columns [begin, begin + columns) of rows of `width`
};

// Dense and strided, aligned and not, with whole and partial units of 8 elements.
const Size kSizes[] = {{1, 8, 8, 0},    {37, 704, 712, 8},     {5, 2048, 2048, 0},
                       {0, 64, 72, 0},  {9, 131, 133, 1},      {3, 1, 1, 0},
                       {6, 64, 68, 4},  {1000, 24, 40, 16},    {70, 61, 72, 8},
                       {33, 61, 61, 0}, {1, 100003, 100003, 0}};

// y = a + b within the columns of `size`; what lies beside them stays y's.
template <typename A, typename B, typename Sum>
std::vector<A> Expected(const Size& size, const std::vector<A>& a, const std::vector<B>& b,
                        std::vector<A> y, const Sum& sum) {
  for (int64_t r = 0; r < size.rows; ++r) {
    for (int64_t c = size.begin; c < size.begin + size.columns; ++c) {
      const auto i = static_cast<size_t>(r * size.width + c);
      y[i] = sum(a[i], b[i]);
    }
  }
  return y;
}

template <typename T>
TensorView Part(const DeviceArray<T>& array, const Size& size) {
  constexpr DType kType = sizeof(T) == 2 ? DType::kBF16 : DType::kF32;
  return OnDevice(array, kType, {size.rows, size.width})
      .Columns(size.begin, size.begin + size.columns);
}

TEST_F(RowsCudaTest, AddIsExactAndMayBeInPlace) {
  for (const Size& size : kSizes) {
    SCOPED_TRACE(testing::Message() << size.rows << " x " << size.columns << " of " << size.width);
    const auto half_a = Bf16Matrix::Random(size.rows, size.width, size.width, 1).data;
    const auto half_b = Bf16Matrix::Random(size.rows, size.width, size.width, 2).data;
    const auto wide_a = RandomFloats(size.rows * size.width, 3);
    const auto wide_b = RandomFloats(size.rows * size.width, 4);
    const auto check = [&](const auto& a, const auto& b, const auto& sum) {
      const DeviceArray a_d(a), b_d(b), y(a), in_a(a), in_b(b);
      OnGpu([&](const OpContext& context) {
        Add(context, Part(a_d, size), Part(b_d, size), Part(y, size));
        Add(context, Part(in_a, size), Part(b_d, size), Part(in_a, size));
        Add(context, Part(a_d, size), Part(in_b, size), Part(in_b, size));
      });
      EXPECT_TRUE(SameBits(y.Download(), Expected(size, a, b, a, sum)));
      EXPECT_TRUE(SameBits(in_a.Download(), Expected(size, a, b, a, sum)));
      EXPECT_TRUE(SameBits(in_b.Download(), Expected(size, a, b, b, sum)));
    };
    check(half_a, half_b, [](Bits x, Bits z) { return ToBits(FromBits(x) + FromBits(z)); });
    check(wide_a, wide_b, [](float x, float z) { return x + z; });
  }
}

TEST_F(RowsCudaTest, AddWideTakesActivationsAndWideNumbers) {
  for (const Size& size : kSizes) {
    SCOPED_TRACE(testing::Message() << size.rows << " x " << size.columns << " of " << size.width);
    const auto half = Bf16Matrix::Random(size.rows, size.width, size.width, 1).data;
    const auto wide = RandomFloats(size.rows * size.width, 3);
    const auto before = RandomFloats(size.rows * size.width, 4);
    const DeviceArray<Bits> half_d(half);
    const DeviceArray<float> wide_d(wide), half_sum(before), wide_sum(before);
    OnGpu([&](const OpContext& context) {
      AddWide(context, Part(half_d, size), Part(half_sum, size));
      AddWide(context, Part(wide_d, size), Part(wide_sum, size));
    });
    EXPECT_TRUE(
        SameBits(half_sum.Download(), Expected(size, before, half, before, [](float sum, Bits x) {
                   return sum + static_cast<float>(FromBits(x));
                 })));
    EXPECT_TRUE(
        SameBits(wide_sum.Download(),
                 Expected(size, before, wide, before, [](float sum, float x) { return sum + x; })));
  }
}

}  // namespace
}  // namespace evenkeel
