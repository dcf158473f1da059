// Casts to FP8, gated units that end in it, and products of it.
#include <algorithm>
#include <cmath>

#include "runtime/ops/activation.h"
#include "runtime/ops/fp8.h"
#include "runtime/ops/fp8_scale.h"
#include "tests/gpu/ops_cuda_fixture.h"

namespace evenkeel {
namespace {

using Byte = uint8_t;

// By the definition of the format: sign, exponent, mantissa; NaN where E4M3 has all ones, and E5M2
// the largest exponent and a mantissa.
double FromFp8(Byte bits, DType format) {
  const int mantissa_bits = format == DType::kF8E5M2 ? 2 : 3;
  const int bias = format == DType::kF8E5M2 ? 15 : 7;
  const int exponent = (bits & 0x7f) >> mantissa_bits;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = (bits & 0x80) != 0 ? -1 : 1;
  if (format == DType::kF8E4M3 && (bits & 0x7f) == 0x7f) return std::nan("");
  if (format == DType::kF8E5M2 && exponent == 31) {
    return mantissa == 0 ? sign * INFINITY : std::nan("");
  }
  const double fraction = std::ldexp(mantissa, -mantissa_bits);
  return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias)
                       : sign * std::ldexp(1 + fraction, exponent - bias);
}

double LargestOf(DType format) {
  return format == DType::kF8E5M2 ? static_cast<double>(kLargestE5M2)
                                  : static_cast<double>(kLargestE4M3);
}

// The distance of x from the nearest number of the format.
double NearestDistance(double x, DType format) {
  double best = INFINITY;
  for (int bits = 0; bits < 256; ++bits) {
    const double value = FromFp8(static_cast<Byte>(bits), format);
    if (std::isfinite(value)) best = std::min(best, std::abs(value - x));
  }
  return best;
}

class Fp8CudaTest : public GpuOpsTest {
 protected:
  void SetUp() override {
    GpuOpsTest::SetUp();
    if (IsSkipped()) return;
    OnGpu([&](const OpContext& context) {
      if (!CheckFp8(context).ok()) has_fp8_ = false;
    });
    if (!has_fp8_) GTEST_SKIP() << "no FP8";
  }

  // The contents of an operand, downloaded.
  struct Contents {
    std::vector<Byte> rows, columns;
    int64_t padded = 0;
  };
  static Contents Download(const OpContext& context, const Fp8Operand& operand) {
    Contents contents;
    const auto fetch = [&](const TensorView& view, std::vector<Byte>& bytes) {
      if (view.empty()) return;
      bytes.resize(static_cast<size_t>(view.num_elements()));
      EXPECT_TRUE(CopyToHost(context, view, TensorView(bytes.data(), view.dtype, view.shape)).ok());
    };
    fetch(operand.rows, contents.rows);
    fetch(operand.columns, contents.columns);
    if (!operand.columns.empty()) contents.padded = operand.columns.dim(1);
    return contents;
  }
  static void Poison(const OpContext& context, const Fp8Operand& operand) {
    for (const TensorView& view : {operand.rows, operand.columns}) {
      if (view.empty()) continue;
      std::vector<Byte> bytes(static_cast<size_t>(view.num_elements()), 0xff);
      EXPECT_TRUE(
          CopyFromHost(context, ConstTensorView(bytes.data(), view.dtype, view.shape), view).ok());
    }
  }
  // Both layouts hold the same bits, and what was added to the columns is zero.
  static void ExpectTransposed(const Contents& c, int64_t tokens, int64_t columns) {
    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t t = 0; t < c.padded; ++t) {
        const Byte got = c.columns[static_cast<size_t>(j * c.padded + t)];
        const Byte want = t < tokens ? c.rows[static_cast<size_t>(t * columns + j)] : 0;
        ASSERT_EQ(got, want) << "column " << j << ", token " << t << " of " << tokens;
      }
    }
  }

  bool has_fp8_ = true;
};

TEST_F(Fp8CudaTest, CastsToTheNearestNumberInBothLayouts) {
  for (const DType format : {DType::kF8E4M3, DType::kF8E5M2}) {
    for (const int64_t tokens : {1, 5, 16, 37, 127, 128, 300}) {
      for (const int64_t columns : {16, 64, 80, 176}) {
        // Some values lie above the range: they become its end.
        const auto x = Bf16Matrix::Random(tokens, columns, columns + 8, 3 + tokens, 2.0);
        const DeviceArray<Bits> x_d(x.data);
        OnGpu([&](const OpContext& context) {
          Fp8Scales scales = *Fp8Scales::Create(context, {format, format}, tracker_);
          const double known = format == DType::kF8E4M3 ? 3.0 : 1.5;
          ASSERT_TRUE(scales.Restore(context, {known, known}).ok());
          const auto scale = static_cast<double>(
              Fp8ScaleOf(static_cast<float>(known), static_cast<float>(LargestOf(format))));
          const ArenaScope scope(context.arena);
          const TensorView in =
              OnDevice(x_d, DType::kBF16, {tokens, columns + 8}).Columns(0, columns);
          const Fp8Operand both =
              AllocateFp8(context, {&scales, 1}, tokens, columns, Fp8Layouts::kBoth);
          Poison(context, both);
          CastToFp8(context, in, both);
          const Contents contents = Download(context, both);
          double amax = 0;
          for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t j = 0; j < columns; ++j) {
              const double exact = FromBits(x.at(t, j));
              amax = std::max(amax, std::abs(exact));
              const double scaled =
                  std::clamp(exact * scale, -LargestOf(format), LargestOf(format));
              const double got =
                  FromFp8(contents.rows[static_cast<size_t>(t * columns + j)], format);
              ASSERT_EQ(std::abs(got - scaled), NearestDistance(scaled, format))
                  << exact << " became " << got << " at scale " << scale;
            }
          }
          ExpectTransposed(contents, tokens, columns);
          EXPECT_EQ(*scales.ReadAmax(context), std::vector<double>({0.0, amax}));
          // One layout alone is the same.
          for (const Fp8Layouts layouts : {Fp8Layouts::kRows, Fp8Layouts::kColumns}) {
            const Fp8Operand one = AllocateFp8(context, {&scales, 0}, tokens, columns, layouts);
            Poison(context, one);
            CastToFp8(context, in, one);
            const Contents alone = Download(context, one);
            if (!alone.rows.empty()) {
              EXPECT_TRUE(alone.rows == contents.rows);
            }
            if (!alone.columns.empty()) {
              EXPECT_TRUE(alone.columns == contents.columns);
            }
          }
        });
      }
    }
  }
}

TEST_F(Fp8CudaTest, CalibratesByTheTensorItself) {
  const int64_t tokens = 50, columns = 96;
  const auto x = Bf16Matrix::Random(tokens, columns, columns, 4, 1e-6);
  const DeviceArray<Bits> x_d(x.data);
  double amax = 0;
  for (const double value : x.Dense()) amax = std::max(amax, std::abs(value));
  OnGpu([&](const OpContext& context) {
    Fp8Scales scales = *Fp8Scales::Create(context, {DType::kF8E5M2}, tracker_);
    const ArenaScope scope(context.arena);
    const Fp8Operand to = AllocateFp8(context, {&scales, 0}, tokens, columns, Fp8Layouts::kRows);
    CastToFp8(context, OnDevice(x_d, DType::kBF16, {tokens, columns}), to);
    const Contents contents = Download(context, to);
    const auto scale = static_cast<double>(Fp8ScaleOf(static_cast<float>(amax), kLargestE5M2));
    RelativeError error;
    for (int64_t i = 0; i < tokens * columns; ++i) {
      error.Add(FromFp8(contents.rows[static_cast<size_t>(i)], DType::kF8E5M2) / scale,
                x.Dense()[static_cast<size_t>(i)]);
    }
    EXPECT_LE(error.value(), 0.125);
    ASSERT_TRUE(scales.Learn(context, *scales.ReadAmax(context)).ok());
    EXPECT_EQ(scales.known()[0], amax);
  });
}

TEST_F(Fp8CudaTest, GatedUnitsAreThoseOfTheCpu) {
  const int64_t sizes[][2] = {{1, 16}, {77, 48}, {130, 176}, {256, 64}};
  for (const GatedUnit unit : {GatedUnit::kSwiGlu, GatedUnit::kSglu}) {
    for (const auto& [tokens, columns] : sizes) {
      const auto pair = Bf16Matrix::Random(tokens, 2 * columns, 2 * columns + 8, 1, 2.0);
      const auto dh = Bf16Matrix::Random(tokens, columns, columns, 2, 1e-4);
      const Shape wide{tokens, 2 * columns}, narrow{tokens, columns};
      std::vector<double> pair_values = pair.Dense(), dh_values = dh.Dense();
      std::vector<double> h(dh_values.size()), dpair(pair_values.size());
      GatedUnitForward(context_, unit, F64(pair_values, wide), F64(h, narrow));
      GatedUnitBackward(context_, unit, F64(pair_values, wide), F64(dh_values, narrow),
                        F64(dpair, wide));
      const DeviceArray<Bits> pair_d(pair.data), dh_d(dh.data);
      OnGpu([&](const OpContext& context) {
        Fp8Scales scales =
            *Fp8Scales::Create(context, {DType::kF8E4M3, DType::kF8E5M2, DType::kF8E4M3}, tracker_);
        const ArenaScope scope(context.arena);
        const TensorView in =
            OnDevice(pair_d, DType::kBF16, {tokens, 2 * columns + 8}).Columns(0, 2 * columns);
        const Fp8Operand forward =
            AllocateFp8(context, {&scales, 0}, tokens, columns, Fp8Layouts::kBoth);
        const Fp8Operand again =
            AllocateFp8(context, {&scales, 2}, tokens, columns, Fp8Layouts::kBoth);
        const Fp8Operand gradient =
            AllocateFp8(context, {&scales, 1}, tokens, 2 * columns, Fp8Layouts::kBoth);
        for (const Fp8Operand& operand : {forward, again, gradient}) Poison(context, operand);
        GatedUnitForwardFp8(context, unit, in, forward);
        GatedUnitBackwardFp8(context, unit, in, OnDevice(dh_d, DType::kBF16, narrow), gradient,
                             again);
        const Contents h_got = Download(context, forward), dpair_got = Download(context, gradient);
        ExpectTransposed(h_got, tokens, columns);
        ExpectTransposed(dpair_got, tokens, 2 * columns);
        EXPECT_TRUE(Download(context, again).rows == h_got.rows);
        const std::vector<double> amax = *scales.ReadAmax(context);
        const auto check = [&](const std::vector<Byte>& got, const std::vector<double>& want,
                               int64_t slot, double half_step) {
          const auto scale =
              static_cast<double>(Fp8ScaleOf(static_cast<float>(amax[static_cast<size_t>(slot)]),
                                             static_cast<float>(LargestOf(scales.format(slot)))));
          // Below the normal numbers steps stay as wide.
          const double smallest =
              FromFp8(static_cast<Byte>(scales.format(slot) == DType::kF8E5M2 ? 4 : 8),
                      scales.format(slot)) /
              scale;
          for (size_t i = 0; i < want.size(); ++i) {
            const double value = FromFp8(got[i], scales.format(slot)) / scale;
            ASSERT_LE(std::abs(value - want[i]),
                      1.001 * half_step * std::max(std::abs(want[i]), smallest))
                << i << " of slot " << slot;
          }
        };
        check(h_got.rows, h, 0, 1.0 / 16);
        check(dpair_got.rows, dpair, 1, 1.0 / 8);
      });
    }
  }
}

// [rows, columns] whose values a cast leaves as they are, so that products are exact but for sums.
Bf16Matrix Representable(int64_t rows, int64_t columns, uint64_t seed, DType format) {
  Bf16Matrix m = Bf16Matrix::Random(rows, columns, columns, seed);
  const double step = format == DType::kF8E5M2 ? 0.5 : 0.25;
  for (Bits& bits : m.data) {
    bits = ToBits(std::clamp(std::round(FromBits(bits) / step) * step, -1.75, 1.75));
    if (format == DType::kF8E5M2) bits = ToBits(std::clamp(FromBits(bits), -1.5, 1.5));
  }
  return m;
}

TEST_F(Fp8CudaTest, ProductsAreThoseOfTheirOperands) {
  const int64_t sizes[][3] = {
      {16, 16, 16}, {1, 64, 32}, {37, 96, 160}, {300, 176, 2048}, {2000, 48, 64}};
  for (const auto& [tokens, out, in] : sizes) {
    const auto x = Representable(tokens, in, 1, DType::kF8E4M3);
    const auto w = Representable(out, in, 2, DType::kF8E4M3);
    const auto dy = Representable(tokens, out, 3, DType::kF8E5M2);
    const auto residual = Bf16Matrix::Random(tokens, out, out, 4);
    const auto bias = Bf16Matrix::Random(1, out, out, 5);
    const std::vector<float> dw_before = RandomFloats(out * in, 6);
    const auto product = [](const std::vector<double>& a, const std::vector<double>& b, int64_t m,
                            int64_t n, int64_t k) {  // a [m, k], b [n, k]
      std::vector<double> c(static_cast<size_t>(m * n));
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          double sum = 0;
          for (int64_t l = 0; l < k; ++l) {
            sum += a[static_cast<size_t>(i * k + l)] * b[static_cast<size_t>(j * k + l)];
          }
          c[static_cast<size_t>(i * n + j)] = sum;
        }
      }
      return c;
    };
    const auto transposed = [](const std::vector<double>& a, int64_t rows, int64_t columns) {
      std::vector<double> t(a.size());
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
          t[static_cast<size_t>(j * rows + i)] = a[static_cast<size_t>(i * columns + j)];
        }
      }
      return t;
    };
    std::vector<double> y_want = product(x.Dense(), w.Dense(), tokens, out, in);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t j = 0; j < out; ++j) {
        y_want[static_cast<size_t>(t * out + j)] +=
            FromBits(bias.at(0, j)) + FromBits(residual.at(t, j));
      }
    }
    const std::vector<double> dx_want =
        product(dy.Dense(), transposed(w.Dense(), out, in), tokens, in, out);
    std::vector<double> dw_want = product(transposed(dy.Dense(), tokens, out),
                                          transposed(x.Dense(), tokens, in), out, in, tokens);
    for (size_t i = 0; i < dw_want.size(); ++i) dw_want[i] += static_cast<double>(dw_before[i]);

    const DeviceArray<Bits> x_d(x.data), w_d(w.data), dy_d(dy.data), residual_d(residual.data),
        bias_d(bias.data), y(residual.data.size()), dx(x.data.size());
    const DeviceArray<float> dw(dw_before);
    OnGpu([&](const OpContext& context) {
      Fp8Scales scales =
          *Fp8Scales::Create(context, {DType::kF8E4M3, DType::kF8E4M3, DType::kF8E5M2}, tracker_);
      const ArenaScope scope(context.arena);
      const auto cast = [&](const DeviceArray<Bits>& from, int64_t rows, int64_t columns,
                            int64_t slot) {
        const Fp8Operand to =
            AllocateFp8(context, {&scales, slot}, rows, columns, Fp8Layouts::kBoth);
        CastToFp8(context, OnDevice(from, DType::kBF16, {rows, columns}), to);
        return to;
      };
      const Fp8Operand x8 = cast(x_d, tokens, in, 0), w8 = cast(w_d, out, in, 1),
                       dy8 = cast(dy_d, tokens, out, 2);
      LinearForwardFp8(context, x8, w8, OnDevice(bias_d, DType::kBF16, {out}),
                       OnDevice(residual_d, DType::kBF16, {tokens, out}),
                       OnDevice(y, DType::kBF16, {tokens, out}));
      LinearBackwardInputFp8(context, dy8, w8, OnDevice(dx, DType::kBF16, {tokens, in}));
      LinearBackwardWeightFp8(context, dy8, x8, OnDevice(dw, DType::kF32, {out, in}));
    });
    const std::string size =
        std::to_string(tokens) + " x " + std::to_string(out) + " x " + std::to_string(in);
    ExpectRounded(Downloaded(y, residual), y_want, "y " + size);
    ExpectRounded(Downloaded(dx, x), dx_want, "dx " + size);
    ExpectFloats(dw.Download(), dw_want, 1e-6, "dw " + size);
  }
}

}  // namespace
}  // namespace evenkeel
