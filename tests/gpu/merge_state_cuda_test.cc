// The merge of partial attention against the CPU's in float64.
#include "attention/kernels/cuda/merge_state_cuda.h"

#include <cmath>
#include <limits>

#include "attention/merge_state.h"
#include "tests/gpu/ops_cuda_fixture.h"

namespace evenkeel {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

struct Case {
  int64_t rows, heads, size;
  bool part_is_bf16;
  int64_t padding;  // elements between rows, of out and of part_out
};

// Which rows have no keys: of the part, of the state, of both, of neither.
float LseOf(int64_t index, int64_t period, const std::vector<float>& values) {
  return index % period == 0 ? kNone : 5.0f * values[static_cast<size_t>(index)];
}

class MergeStateCudaTest : public OpsCudaTest {
 protected:
  void Check(const Case& c, uint64_t seed) {
    SCOPED_TRACE(std::to_string(c.rows) + " x " + std::to_string(c.heads) + " x " +
                 std::to_string(c.size) + " bf16 " + std::to_string(c.part_is_bf16));
    const int64_t width = c.heads * c.size, stride = width + c.padding, pairs = c.rows * c.heads;
    const Bf16Matrix part = Bf16Matrix::Random(c.rows, width, stride, seed);
    const std::vector<double> part_values = part.Dense();
    const std::vector<float> random = RandomFloats(c.rows * stride, seed + 1);
    const std::vector<float> lse_values = RandomFloats(2 * pairs, seed + 2);
    constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

    // NaN in all that must not be read: rows without keys on either side, and between rows.
    std::vector<float> part_floats(static_cast<size_t>(c.rows * stride), kNan), out = part_floats;
    Bf16Matrix part_bits = part;
    std::vector<float> part_lse, lse;
    std::vector<double> want_part(part_values), want_out;
    for (int64_t i = 0; i < pairs; ++i) {
      part_lse.push_back(LseOf(i, 3, lse_values));
      lse.push_back(i % 4 == 0 ? kNone : 5.0f * lse_values[static_cast<size_t>(pairs + i)]);
      const int64_t row = i / c.heads, head = i % c.heads;
      for (int64_t e = 0; e < c.size; ++e) {
        const int64_t column = head * c.size + e;
        const auto at = static_cast<size_t>(row * stride + column);
        const bool out_is_zero = lse.back() == kNone && part_lse.back() == kNone;
        if (part_lse.back() == kNone) {
          part_bits.at(row, column) = kPoison;
        } else {
          part_floats[at] =
              static_cast<float>(part_values[static_cast<size_t>(row * width + column)]);
        }
        if (lse.back() != kNone) out[at] = random[at];
        if (out_is_zero) out[at] = 0.0f;  // the identity stays as it is
        want_out.push_back(lse.back() == kNone ? 0.0 : static_cast<double>(out[at]));
      }
    }

    const DeviceArray<Bits> part_bits_d(part_bits.data);
    const DeviceArray<float> part_floats_d(part_floats), part_lse_d(part_lse), out_d(out),
        lse_d(lse);
    MergeStateParams p;
    p.rows = c.rows;
    p.heads = c.heads;
    p.size = c.size;
    p.part_is_bf16 = c.part_is_bf16;
    p.part_out = c.part_is_bf16 ? static_cast<const void*>(part_bits_d.data())
                                : static_cast<const void*>(part_floats_d.data());
    p.part_lse = part_lse_d.data();
    p.out = out_d.data();
    p.lse = lse_d.data();
    p.part_out_strides = p.out_strides = {stride, c.size};
    p.part_lse_strides = p.lse_strides = {c.heads, 1};
    ASSERT_EQ(LaunchMergeState(p, nullptr), cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    const std::vector<float> got = out_d.Download(), got_lse = lse_d.Download();

    std::vector<double> want_lse = ToDouble(lse), want_part_lse = ToDouble(part_lse);
    const ::evenkeel::Shape states{c.rows, c.heads, c.size}, statistics{c.rows, c.heads};
    MergeState(context_, F64(want_part, states), F64(want_part_lse, statistics),
               F64(want_out, states), F64(want_lse, statistics));
    RelativeError error;
    for (int64_t i = 0; i < pairs; ++i) {
      const auto at = static_cast<size_t>(i);
      if (std::isinf(want_lse[at])) {
        EXPECT_EQ(got_lse[at], kNone);
      } else {
        EXPECT_NEAR(got_lse[at], want_lse[at], 1e-5);
      }
      const int64_t row = i / c.heads, head = i % c.heads;
      for (int64_t e = 0; e < c.size; ++e) {
        error.Add(got[static_cast<size_t>(row * stride + head * c.size + e)],
                  want_out[static_cast<size_t>(i * c.size + e)]);
      }
    }
    EXPECT_LE(error.value(), 2e-7);
    int64_t touched = 0;
    for (int64_t row = 0; row < c.rows; ++row) {
      for (int64_t e = width; e < stride; ++e) {
        touched += !std::isnan(got[static_cast<size_t>(row * stride + e)]);
      }
    }
    EXPECT_EQ(touched, 0);
  }
};

TEST_F(MergeStateCudaTest, EveryShape) {
  uint64_t seed = 1;
  for (const bool bf16 : {true, false}) {
    for (const int64_t size : {8, 64, 72, 128, 256, 5, 1}) {
      Check({1, 1, size, bf16, 0}, seed += 10);
      Check({37, 3, size, bf16, 8}, seed += 10);
      Check({300, 16, size, bf16, 0}, seed += 10);
    }
    Check({20, 4, 16, bf16, 3}, seed += 10);  // rows that are not aligned
  }
}

TEST_F(MergeStateCudaTest, IdentityIsExact) {
  const int64_t rows = 21, heads = 3, size = 20;
  const auto n = static_cast<size_t>(rows * heads * size),
             pairs = static_cast<size_t>(rows * heads);
  const std::vector<float> values = RandomFloats(rows * heads * size, 900);
  const std::vector<float> lse_values = RandomFloats(rows * heads, 901);
  const DeviceArray<float> out(n), lse(pairs), part(values), part_lse(lse_values);
  MergeStateParams p;
  p.rows = rows;
  p.heads = heads;
  p.size = size;
  p.out = out.data();
  p.lse = lse.data();
  p.part_out = part.data();
  p.part_lse = part_lse.data();
  p.part_out_strides = p.out_strides = {heads * size, size};
  p.part_lse_strides = p.lse_strides = {heads, 1};
  ASSERT_EQ(LaunchSetIdentityState(p, nullptr), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_TRUE(SameBits(out.Download(), std::vector<float>(n, 0.0f)));
  EXPECT_TRUE(SameBits(lse.Download(), std::vector<float>(pairs, kNone)));
  ASSERT_EQ(LaunchMergeState(p, nullptr), cudaSuccess);  // into the identity
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_TRUE(SameBits(out.Download(), values));
  EXPECT_TRUE(SameBits(lse.Download(), lse_values));
  const DeviceArray<float> nothing(n);  // NaN
  const DeviceArray<float> nothing_lse(std::vector<float>(pairs, kNone));
  p.part_out = nothing.data();
  p.part_lse = nothing_lse.data();
  ASSERT_EQ(LaunchMergeState(p, nullptr), cudaSuccess);  // of the identity
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_TRUE(SameBits(out.Download(), values));
  EXPECT_TRUE(SameBits(lse.Download(), lse_values));
}

TEST_F(MergeStateCudaTest, NoRows) {
  MergeStateParams p;
  p.heads = 4;
  p.size = 8;
  EXPECT_EQ(LaunchMergeState(p, nullptr), cudaSuccess);
  EXPECT_EQ(LaunchSetIdentityState(p, nullptr), cudaSuccess);
}

}  // namespace
}  // namespace evenkeel
