// Sums, clipping, AdamW and matrix products.
#include <limits>

#include "runtime/ops/adamw.h"
#include "runtime/ops/cuda/adamw_cuda.h"
#include "runtime/ops/cuda/matmul_cuda.h"
#include "runtime/ops/cuda/sum_cuda.h"
#include "runtime/ops/elementwise.h"
#include "tests/gpu/ops_cuda_fixture.h"

namespace evenkeel {
namespace {

class UpdateCudaTest : public OpsCudaTest {};

TEST_F(UpdateCudaTest, SumsEqualFloat64) {
  for (const int64_t n : {0, 1, 7, 1000, 32768, 32769, 1000003}) {
    for (const bool squares : {false, true}) {
      for (const int64_t shift : {0, 1}) {
        const std::vector<float> x = RandomFloats(n + shift, 4);
        const DeviceArray<float> x_d(x);
        const DeviceArray<std::byte> workspace(SumWorkspaceBytes(n));
        const DeviceArray<double> sum(std::vector<double>{100.0});
        SumParams p;
        p.n = n;
        p.x = x_d.data() + shift;
        p.squares = squares;
        p.sum = sum.data();
        p.workspace = workspace.data();
        double want = 0.0, size = 0.0;
        for (int64_t i = 0; i < n; ++i) {
          const double v = x[static_cast<size_t>(i + shift)];
          want += squares ? v * v : v;
          size += squares ? v * v : std::abs(v);
        }
        ASSERT_EQ(LaunchSum(p, nullptr), cudaSuccess);
        const double once = sum.Download()[0];
        EXPECT_NEAR(once, want, 1e-7 * size) << n;
        p.accumulate = true;
        ASSERT_EQ(LaunchSum(p, nullptr), cudaSuccess);
        EXPECT_EQ(sum.Download()[0], once + once) << "a second sum gives the same bits";
      }
    }
  }
}

TEST_F(UpdateCudaTest, ClipFactor) {
  const double inf = std::numeric_limits<double>::infinity();
  struct Case {
    double sum, max_norm, norm;
    float factor;
  };
  for (const Case& c : {Case{16, 1, 4, 0.25f}, Case{16, 8, 4, 1}, Case{16, 0, 4, 1},
                        Case{0, 1, 0, 1}, Case{2, 4, std::sqrt(2.0), 1}, Case{inf, 1, inf, -1}}) {
    const DeviceArray<double> sum(std::vector<double>{c.sum});
    const DeviceArray<double> norm(size_t{1});
    const DeviceArray<float> factor(size_t{1});
    ASSERT_EQ(LaunchClipFactor({sum.data(), c.max_norm, norm.data(), factor.data()}, nullptr),
              cudaSuccess);
    EXPECT_EQ(norm.Download()[0], c.norm);
    EXPECT_EQ(factor.Download()[0], c.factor);
  }
  const DeviceArray<double> nan(size_t{1}), norm(std::vector<double>{0.0});
  const DeviceArray<float> factor(size_t{1});
  ASSERT_EQ(LaunchClipFactor({nan.data(), 1.0, norm.data(), factor.data()}, nullptr), cudaSuccess);
  EXPECT_EQ(factor.Download()[0], -1.0f);
  EXPECT_TRUE(std::isnan(norm.Download()[0]));
}

TEST_F(UpdateCudaTest, AdamWEqualsCpu) {
  for (const int64_t n : {int64_t{1}, int64_t{2048}, int64_t{100003}}) {
    std::vector<AdamWRange> ranges = {{0, 0.1f}};
    if (n > 10) {
      ranges.push_back({5, 0.0f});
      ranges.push_back({n / 2 + 1, 0.3f});
      ranges.push_back({n - 2, 0.0f});
    }
    const std::vector<float> g = RandomFloats(n, 1), w0 = RandomFloats(n, 2);
    std::vector<float> m0 = RandomFloats(n, 3, 0.1), v0 = RandomFloats(n, 4, 0.1);
    for (float& v : v0) v = v * v;
    const DeviceArray<AdamWRange> ranges_d(ranges);
    const double lr = 1e-2, scale = 0.5;
    const DeviceArray<float> scale_d(std::vector<float>{static_cast<float>(scale)});
    for (const int64_t shift : {0, 1}) {  // one element off alignment
      const auto shifted = [&](const std::vector<float>& values) {
        std::vector<float> moved(static_cast<size_t>(shift), 9.0f);
        moved.insert(moved.end(), values.begin(), values.end());
        return moved;
      };
      const DeviceArray<float> g_d(shifted(g)), w(shifted(w0)), m(shifted(m0)), v(shifted(v0));
      const DeviceArray<Bits> copy(static_cast<size_t>(n + shift));
      AdamWParams p;
      p.n = n;
      p.weight = w.data() + shift;
      p.exp_avg = m.data() + shift;
      p.exp_avg_sq = v.data() + shift;
      p.gradient = g_d.data() + shift;
      p.copy = copy.data() + shift;
      p.ranges = ranges_d.data();
      p.num_ranges = static_cast<int64_t>(ranges.size());
      p.gradient_scale = scale_d.data();
      p.lr = lr;
      std::vector<double> wd = ToDouble(w0), md = ToDouble(m0), vd = ToDouble(v0), gd = ToDouble(g);
      for (int64_t step = 1; step <= 3; ++step) {
        p.step = step;
        p.clear_gradient = step == 3;
        ASSERT_EQ(LaunchAdamW(p, nullptr), cudaSuccess);
        for (size_t r = 0; r < ranges.size(); ++r) {
          const int64_t begin = ranges[r].begin;
          const int64_t end = r + 1 < ranges.size() ? ranges[r + 1].begin : n;
          AdamWConfig config;
          config.weight_decay = static_cast<double>(ranges[r].weight_decay);
          AdamWStep(context_, config, lr, step, scale, F64(gd, {n}).Slice(0, begin, end),
                    F64(wd, {n}).Slice(0, begin, end), F64(md, {n}).Slice(0, begin, end),
                    F64(vd, {n}).Slice(0, begin, end));
        }
      }
      const auto unshifted = [&](std::vector<float> values) {
        if (shift == 1) {
          EXPECT_EQ(values[0], 9.0f);
        }
        values.erase(values.begin(), values.begin() + shift);
        return values;
      };
      const std::vector<float> got = unshifted(w.Download());
      ExpectFloats(got, wd, 1e-6, "weight");
      ExpectFloats(unshifted(m.Download()), md, 1e-6, "exp_avg");
      ExpectFloats(unshifted(v.Download()), vd, 1e-6, "exp_avg_sq");
      const std::vector<Bits> rounded = copy.Download();
      for (int64_t i = 0; i < n; ++i) {
        ASSERT_EQ(rounded[static_cast<size_t>(i + shift)],
                  ToBits(static_cast<double>(got[static_cast<size_t>(i)])));
      }
      for (const float x : unshifted(g_d.Download())) ASSERT_EQ(x, 0.0f);

      const DeviceArray<float> skip(std::vector<float>{-1.0f});
      p.gradient_scale = skip.data();
      ASSERT_EQ(LaunchAdamW(p, nullptr), cudaSuccess);
      EXPECT_TRUE(SameBits(unshifted(w.Download()), got)) << "a skipped step";
    }
  }
}

// a [m, k] in its stored form.
std::vector<double> Stored(const std::vector<double>& a, int64_t m, int64_t k, Transpose t) {
  if (t == Transpose::kNo) return a;
  std::vector<double> moved(a.size());
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      moved[static_cast<size_t>(j * m + i)] = a[static_cast<size_t>(i * k + j)];
    }
  }
  return moved;
}

std::vector<Bits> AllBits(const std::vector<double>& values) {
  std::vector<Bits> bits;
  for (const double v : values) bits.push_back(ToBits(v));
  return bits;
}

// A product that came up often is tuned, and nobody sees it in the results.
TEST_F(UpdateCudaTest, TuningProductsKeepsTheirBits) {
  const DeviceArray<std::byte> workspace(size_t{32} << 20);
  auto product = CudaMatMul::Create(workspace.data(), size_t{32} << 20);
  ASSERT_TRUE(product.ok()) << product.status();
  const int64_t m = 1000, n = 520, k = 768;
  const DeviceArray<Bits> a(Bf16Matrix::Random(m, k, k, 1).data);
  const DeviceArray<Bits> b(Bf16Matrix::Random(n, k, k, 2).data);
  const DeviceArray<Bits> c(Bf16Matrix::Random(m, n, n, 3).data);
  std::vector<Bits> first;
  for (int use = 0; use < 220; ++use) {
    const DeviceArray<Bits> out(static_cast<size_t>(m * n));
    CudaMatMulParams p;
    p.m = m;
    p.n = n;
    p.k = k;
    p.a = a.data();
    p.b = b.data();
    p.transpose_b = Transpose::kYes;
    p.beta = 1.0f;
    p.c = c.data();
    p.out = out.data();
    p.a_stride = p.b_stride = k;
    p.c_stride = p.out_stride = n;
    ASSERT_TRUE(product->Run(p, nullptr).ok());
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    if (use % 20 != 0 && use < 95) continue;
    const std::vector<Bits> now = out.Download();
    if (first.empty()) first = now;
    ASSERT_TRUE(SameBits(first, now)) << "use " << use;
  }
}

TEST_F(UpdateCudaTest, ProductsEqualCpu) {
  const DeviceArray<std::byte> workspace(size_t{32} << 20);
  auto product = CudaMatMul::Create(workspace.data(), size_t{32} << 20);
  ASSERT_TRUE(product.ok()) << product.status();
  for (const auto& [m, n, k] :
       {std::array<int64_t, 3>{64, 96, 128}, std::array<int64_t, 3>{1, 8, 16},
        std::array<int64_t, 3>{136, 72, 2048}, std::array<int64_t, 3>{8, 8, 0},
        std::array<int64_t, 3>{0, 8, 8}, std::array<int64_t, 3>{33, 40, 24}}) {
    for (const Transpose ta : {Transpose::kNo, Transpose::kYes}) {
      if (ta == Transpose::kYes && m % 8 != 0) continue;
      for (const Transpose tb : {Transpose::kNo, Transpose::kYes}) {
        for (const bool float_out : {false, true}) {
          for (const float beta : {0.0f, 1.0f}) {
            SCOPED_TRACE(::testing::Message() << m << " " << n << " " << k << " " << float_out);
            const std::vector<double> a = Bf16Matrix::Random(m, k, k, 1).Dense();
            const std::vector<double> b = Bf16Matrix::Random(k, n, n, 2).Dense();
            const auto c = Bf16Matrix::Random(m, n, n, 3), bias = Bf16Matrix::Random(1, n, n, 4);
            std::vector<double> want = c.Dense(), sa = Stored(a, m, k, ta),
                                sb = Stored(b, k, n, tb);
            if (k > 0 && m > 0) {
              MatMul(context_, F64(sa, ta == Transpose::kNo ? Shape{m, k} : Shape{k, m}), ta,
                     F64(sb, tb == Transpose::kNo ? Shape{k, n} : Shape{n, k}), tb,
                     static_cast<double>(beta), F64(want, {m, n}));
            } else if (beta == 0.0f) {
              std::fill(want.begin(), want.end(), 0.0);
            }
            const bool with_bias = !float_out && k > 0;
            for (int64_t i = 0; with_bias && i < m * n; ++i) {
              want[static_cast<size_t>(i)] += FromBits(bias.at(0, i % n));
            }
            const DeviceArray<Bits> a_d(AllBits(sa)), b_d(AllBits(sb)), bias_d(bias.data);
            const DeviceArray<Bits> out16(c.data);
            const std::vector<double> start = c.Dense();
            const DeviceArray<float> out32(std::vector<float>(start.begin(), start.end()));
            CudaMatMulParams p;
            p.m = m;
            p.n = n;
            p.k = k;
            p.a = a_d.data();
            p.b = b_d.data();
            p.transpose_a = ta;
            p.transpose_b = tb;
            p.beta = beta;
            p.float_out = float_out;
            p.out = float_out ? static_cast<void*>(out32.data()) : out16.data();
            p.bias = with_bias ? bias_d.data() : nullptr;
            p.a_stride = ta == Transpose::kNo ? k : m;
            p.b_stride = tb == Transpose::kNo ? n : k;
            p.out_stride = n;
            const absl::Status status = product->Run(p, nullptr);
            ASSERT_TRUE(status.ok()) << status;
            if (float_out) {
              const std::vector<float> first = out32.Download();
              ExpectFloats(first, want, 1e-5, "product");
              const DeviceArray<float> again(std::vector<float>(start.begin(), start.end()));
              p.out = again.data();
              ASSERT_TRUE(product->Run(p, nullptr).ok());
              EXPECT_TRUE(SameBits(again.Download(), first));
            } else {
              ExpectRounded(Downloaded(out16, c), want, "product");
              // Out of place: the old contents come from elsewhere, as a residual does.
              const DeviceArray<Bits> other(c.data), out(c.data.size());
              p.c = other.data();
              p.c_stride = n;
              p.out = out.data();
              ASSERT_TRUE(product->Run(p, nullptr).ok());
              ExpectRounded(Downloaded(out, c), want, "product out of place");
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace evenkeel
