// Activations, gated units and position encodings.
#include "runtime/ops/activation.h"
#include "runtime/ops/cuda/activation_cuda.h"
#include "runtime/ops/cuda/bias_cuda.h"
#include "runtime/ops/cuda/position_cuda.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/fill_normal.h"
#include "runtime/ops/position.h"
#include "tests/gpu/ops_cuda_fixture.h"

namespace evenkeel {
namespace {

struct Size {
  int64_t tokens, columns, padding;
};

const Size kSizes[] = {{1, 8, 0},   {37, 704, 8}, {5, 2048, 0}, {0, 64, 0},
                       {9, 131, 2}, {3, 1, 0},    {6, 64, 4},   {1000, 24, 8}};

class ElementwiseCudaTest : public OpsCudaTest {};

using FillNormalCudaTest = GpuOpsTest;

TEST_F(FillNormalCudaTest, DrawsTheNumbersOfTheCpu) {
  for (const int64_t n : {0, 1, 255, 300000}) {
    for (const int64_t first : {int64_t{0}, int64_t{77}, int64_t{1} << 33}) {
      std::vector<double> want(static_cast<size_t>(n));
      FillNormal(context_, 5, 0x123456789abcdefull, first, 0.02, F64(want, {n}));
      const DeviceArray<float> y(static_cast<size_t>(n));
      OnGpu([&](const OpContext& context) {
        FillNormal(context, 5, 0x123456789abcdefull, first, 0.02, OnDevice(y, DType::kF32, {n}));
      });
      const std::vector<float> got = y.Download();
      int64_t others = 0;  // next to a number's end of the rounding interval
      for (size_t i = 0; i < want.size(); ++i) {
        const auto rounded = static_cast<float>(want[i]);
        if (got[i] == rounded) continue;
        ++others;
        EXPECT_TRUE(got[i] == std::nextafter(rounded, got[i])) << got[i] << " for " << want[i];
      }
      EXPECT_LE(others, n / 100000);
    }
  }
}

TEST_F(ElementwiseCudaTest, ActivationsEqualCpu) {
  for (const Activation kind : {Activation::kSilu, Activation::kElu, Activation::kOneElu}) {
    for (const Size& s : kSizes) {
      const int64_t stride = s.columns + s.padding;
      const auto x = Bf16Matrix::Random(s.tokens, s.columns, stride, 1, 4.0);
      const auto dy = Bf16Matrix::Random(s.tokens, s.columns, stride, 2);
      const DeviceArray<Bits> x_d(x.data), dy_d(dy.data), y(x.data.size()), dx(x.data.size());
      ActivationParams p;
      p.activation = kind;
      p.tokens = s.tokens;
      p.columns = s.columns;
      p.x = x_d.data();
      p.y = y.data();
      p.x_stride = p.dy_stride = p.y_stride = stride;
      ASSERT_EQ(LaunchActivation(p, nullptr), cudaSuccess);
      p.dy = dy_d.data();
      p.y = dx.data();
      ASSERT_EQ(LaunchActivation(p, nullptr), cudaSuccess);
      const Shape shape{s.tokens, s.columns};
      std::vector<double> in = x.Dense(), d = dy.Dense(), want(in.size());
      ActivationForward(context_, kind, F64(in, shape), F64(want, shape));
      ExpectRounded(Downloaded(y, x), want, "y");
      ActivationBackward(context_, kind, F64(in, shape), F64(d, shape), F64(want, shape));
      ExpectRounded(Downloaded(dx, x), want, "dx");
    }
  }
}

TEST_F(ElementwiseCudaTest, GatedUnitsEqualCpu) {
  for (const GatedUnit unit : {GatedUnit::kSwiGlu, GatedUnit::kSglu}) {
    for (const Size& s : kSizes) {
      const int64_t wide = 2 * s.columns + s.padding, narrow = s.columns + s.padding;
      const auto pair = Bf16Matrix::Random(s.tokens, 2 * s.columns, wide, 1, 3.0);
      const auto dh = Bf16Matrix::Random(s.tokens, s.columns, narrow, 2);
      const DeviceArray<Bits> pair_d(pair.data), dh_d(dh.data);
      std::vector<Bits> first;
      for (int run = 0; run < 2; ++run) {
        const DeviceArray<Bits> h(dh.data.size()), again(dh.data.size());
        const DeviceArray<Bits> dpair(pair.data);  // in place
        GatedUnitParams p;
        p.unit = unit;
        p.tokens = s.tokens;
        p.columns = s.columns;
        p.pair = pair_d.data();
        p.h = h.data();
        p.pair_stride = p.dpair_stride = wide;
        p.h_stride = p.dh_stride = narrow;
        ASSERT_EQ(LaunchGatedUnitForward(p, nullptr), cudaSuccess);
        p.pair = p.dpair = dpair.data();
        p.dh = dh_d.data();
        p.h = again.data();
        ASSERT_EQ(LaunchGatedUnitBackward(p, nullptr), cudaSuccess);
        const Shape pairs{s.tokens, 2 * s.columns}, units{s.tokens, s.columns};
        std::vector<double> in = pair.Dense(), d = dh.Dense(), want(d.size()), dwant(in.size());
        GatedUnitForward(context_, unit, F64(in, pairs), F64(want, units));
        ExpectRounded(Downloaded(h, dh), want, "h");
        EXPECT_TRUE(SameBits(h.Download(), again.Download())) << "h computed again";
        GatedUnitBackward(context_, unit, F64(in, pairs), F64(d, units), F64(dwant, pairs));
        const Bf16Matrix got = Downloaded(dpair, pair);
        ExpectRounded(got, dwant, "dpair");
        if (run == 1) {
          EXPECT_TRUE(SameBits(got.data, first));
        }
        first = got.data;
      }
    }
  }
}

struct HeadCase {
  int64_t tokens, heads, dim, padding;
};

TEST_F(ElementwiseCudaTest, RopeEqualsCpu) {
  for (const HeadCase& s : {HeadCase{37, 5, 64, 16}, HeadCase{9, 24, 128, 0},
                            HeadCase{3, 70, 256, 8}, HeadCase{1, 1, 16, 0}, HeadCase{0, 2, 32, 0},
                            HeadCase{7, 3, 6, 1}, HeadCase{5, 2, 40, 8}, HeadCase{4, 2, 64, 3}}) {
    for (const bool inverse : {false, true}) {
      const int64_t columns = s.heads * s.dim, stride = columns + s.padding;
      const auto x = Bf16Matrix::Random(s.tokens, columns, stride, 1);
      RopeConfig config;
      std::vector<int64_t> positions;
      for (int64_t t = 0; t < s.tokens; ++t) positions.push_back(t * t * 977 % 1000003);
      const Shape table{s.tokens, s.dim / 2}, shape{s.tokens, s.heads, s.dim};
      std::vector<double> cos(static_cast<size_t>(table.num_elements())), sin(cos.size());
      RopeTable(context_, positions, RopeInverseFrequencies(config, s.dim), 1.0, F64(cos, table),
                F64(sin, table));
      const DeviceArray<float> cos_d(std::vector<float>(cos.begin(), cos.end()));
      const DeviceArray<float> sin_d(std::vector<float>(sin.begin(), sin.end()));
      const DeviceArray<Bits> x_d(x.data);
      RopeParams p;
      p.tokens = s.tokens;
      p.heads = s.heads;
      p.head_dim = s.dim;
      p.cos = cos_d.data();
      p.sin = sin_d.data();
      p.x = x_d.data();
      p.stride = stride;
      p.inverse = inverse;
      ASSERT_EQ(LaunchRope(p, nullptr), cudaSuccess);
      std::vector<double> want = x.Dense();
      ApplyRope(context_, F64(cos, table), F64(sin, table), inverse, F64(want, shape));
      ExpectRounded(Downloaded(x_d, x), want,
                    "head dim " + std::to_string(s.dim) + (inverse ? " inverse" : ""));
    }
  }
}

TEST_F(ElementwiseCudaTest, RopeTableEqualsCpu) {
  for (const HeadCase& s : {HeadCase{37, 1, 64, 0}, HeadCase{300, 1, 128, 0}, HeadCase{1, 1, 2, 0},
                            HeadCase{5, 1, 6, 0}, HeadCase{0, 1, 32, 0}}) {
    RopeConfig config;
    config.scaling = RopeScalingKind::kYarn;
    config.factor = 4;
    const double factor = RopeAttentionFactor(config);
    const std::vector<double> frequencies = RopeInverseFrequencies(config, s.dim);
    std::vector<int64_t> positions;
    for (int64_t t = 0; t < s.tokens; ++t) positions.push_back(t * t * t * 977 % 1000003);
    const Shape table{s.tokens, s.dim / 2};
    const auto size = static_cast<size_t>(table.num_elements());
    std::vector<double> want_cos(size), want_sin(size);
    RopeTable(context_, positions, frequencies, factor, F64(want_cos, table), F64(want_sin, table));
    const DeviceArray<int64_t> positions_d(positions);
    const DeviceArray<double> frequencies_d(frequencies);
    const DeviceArray<float> cos(size), sin(size);
    RopeTableParams p;
    p.tokens = s.tokens;
    p.head_dim = s.dim;
    p.positions = positions_d.data();
    p.inverse_frequencies = frequencies_d.data();
    p.attention_factor = factor;
    p.cos = cos.data();
    p.sin = sin.data();
    ASSERT_EQ(LaunchRopeTable(p, nullptr), cudaSuccess);
    const std::vector<float> got_cos = cos.Download(), got_sin = sin.Download();
    for (size_t i = 0; i < size; ++i) {
      // Rounded once: half a unit in the last place of float32, and next to nothing for the sine.
      EXPECT_NEAR(got_cos[i], want_cos[i], 6e-8 * std::abs(want_cos[i]) + 1e-14) << i;
      EXPECT_NEAR(got_sin[i], want_sin[i], 6e-8 * std::abs(want_sin[i]) + 1e-14) << i;
    }
  }
}

TEST_F(ElementwiseCudaTest, BiasBackwardEqualsCpu) {
  struct Case {
    int64_t tokens, columns, padding;
  };
  for (const Case& s : {Case{1, 1, 0}, Case{1, 8, 0}, Case{37, 64, 8}, Case{64, 256, 0},
                        Case{65, 264, 8}, Case{3000, 40, 8}, Case{50000, 8, 0}, Case{700, 1000, 24},
                        Case{100, 2048, 0}, Case{5, 136000, 0}, Case{0, 64, 0}, Case{70, 129, 4},
                        Case{300, 7, 0}, Case{2000, 64, 3}, Case{50000, 1, 0}}) {
    const std::string name = std::to_string(s.tokens) + " x " + std::to_string(s.columns) + " + " +
                             std::to_string(s.padding);
    const auto dy = Bf16Matrix::Random(s.tokens, s.columns, s.columns + s.padding, 1);
    const DeviceArray<Bits> dy_d(dy.data);
    std::vector<float> first;
    for (int run = 0; run < 2; ++run) {
      const DeviceArray<float> dbias(std::vector<float>(static_cast<size_t>(s.columns), 0.5f));
      const DeviceArray<std::byte> workspace(BiasBackwardWorkspaceBytes(s.tokens, s.columns));
      BiasBackwardParams p;
      p.tokens = s.tokens;
      p.columns = s.columns;
      p.dy = dy_d.data();
      p.dy_stride = dy.stride;
      p.dbias = dbias.data();
      p.workspace = workspace.data();
      ASSERT_EQ(LaunchBiasBackward(p, nullptr), cudaSuccess) << name;
      const std::vector<float> got = dbias.Download();
      if (run == 1) {
        EXPECT_TRUE(SameBits(got, first)) << name;
        continue;
      }
      first = got;
      std::vector<double> rows = dy.Dense(), want(static_cast<size_t>(s.columns), 0.5);
      BiasBackward(context_, F64(rows, {s.tokens, s.columns}), F64(want, {s.columns}));
      ExpectFloats(got, want, 1e-5, name);
    }
  }
}

TEST_F(ElementwiseCudaTest, LrpeEqualsCpu) {
  for (const HeadCase& s : {HeadCase{100, 3, 128, 8}, HeadCase{33, 16, 64, 0}, HeadCase{1, 1, 8, 0},
                            HeadCase{0, 2, 32, 0}, HeadCase{70, 2, 7, 1}, HeadCase{40, 2, 64, 3}}) {
    const int64_t columns = s.heads * s.dim, stride = columns + s.padding;
    const int64_t wide = 2 * columns + s.padding;
    const auto x = Bf16Matrix::Random(s.tokens, columns, stride, 1);
    const auto dy = Bf16Matrix::Random(s.tokens, 2 * columns, wide, 2);
    const std::vector<float> theta = RandomFloats(columns, 3);
    // Documents that begin anywhere, one of them a million tokens in.
    std::vector<int64_t> positions;
    for (int64_t t = 0; t < s.tokens; ++t) {
      positions.push_back(t < 21 ? t : t < 45 ? 1000000 + t : t - 45);
    }
    const DeviceArray<Bits> x_d(x.data), dy_d(dy.data);
    const DeviceArray<float> theta_d(theta);
    const DeviceArray<int64_t> positions_d(positions);
    std::vector<Bits> first_y, first_dx;
    std::vector<float> first_dtheta;
    for (int run = 0; run < 2; ++run) {
      const DeviceArray<Bits> y(dy.data.size()), dx(x.data.size());
      const DeviceArray<float> dtheta(std::vector<float>(theta.size(), 0.25f));
      const DeviceArray<std::byte> workspace(LrpeBackwardWorkspaceBytes(s.tokens, s.heads, s.dim));
      LrpeParams p;
      p.tokens = s.tokens;
      p.heads = s.heads;
      p.head_dim = s.dim;
      p.positions = positions_d.data();
      p.theta = theta_d.data();
      p.x = x_d.data();
      p.x_stride = stride;
      p.y = y.data();
      p.y_stride = wide;
      ASSERT_EQ(LaunchLrpeForward(p, nullptr), cudaSuccess);
      p.dy = dy_d.data();
      p.dy_stride = wide;
      p.dx = dx.data();
      p.dx_stride = stride;
      p.dtheta = dtheta.data();
      p.workspace = workspace.data();
      ASSERT_EQ(LaunchLrpeBackward(p, nullptr), cudaSuccess);
      const Bf16Matrix got_y = Downloaded(y, dy), got_dx = Downloaded(dx, x);
      const std::vector<float> got_dtheta = dtheta.Download();
      if (run == 1) {
        EXPECT_TRUE(SameBits(got_y.data, first_y));
        EXPECT_TRUE(SameBits(got_dx.data, first_dx));
        EXPECT_TRUE(SameBits(got_dtheta, first_dtheta));
        continue;
      }
      first_y = got_y.data;
      first_dx = got_dx.data;
      first_dtheta = got_dtheta;
      const Shape in{s.tokens, s.heads, s.dim}, out{s.tokens, s.heads, 2 * s.dim};
      const Shape rates{s.heads, s.dim};
      std::vector<double> raw = x.Dense(), a(raw.size()), d = dy.Dense();
      std::vector<double> want(d.size()), want_dx(raw.size()), th = ToDouble(theta);
      std::vector<double> want_dtheta(theta.size(), 0.25);
      ActivationForward(context_, Activation::kSilu, F64(raw, in), F64(a, in));
      LrpeForward(context_, F64(a, in), F64(th, rates), positions, F64(want, out));
      ExpectRounded(got_y, want, "y, head dim " + std::to_string(s.dim));
      LrpeBackward(context_, F64(a, in), F64(th, rates), positions, F64(d, out), F64(want_dx, in),
                   F64(want_dtheta, rates));
      ActivationBackward(context_, Activation::kSilu, F64(raw, in), F64(want_dx, in),
                         F64(want_dx, in));
      ExpectRounded(got_dx, want_dx, "dx, head dim " + std::to_string(s.dim));
      ExpectFloats(got_dtheta, want_dtheta, 1e-5, "dtheta, head dim " + std::to_string(s.dim));
    }
  }
}

}  // namespace
}  // namespace evenkeel
