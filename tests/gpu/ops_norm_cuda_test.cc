#include "runtime/ops/cuda/norm_cuda.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/norm.h"
#include "tests/gpu/ops_cuda_fixture.h"

namespace evenkeel {
namespace {

constexpr double kEps = 1e-5;

enum class Factor { kNone, kGain, kGate };

struct NormCase {
  int64_t tokens, columns, padding;
  Factor factor;
  bool residual;
  std::string name() const {
    return std::to_string(tokens) + " x " + std::to_string(columns) + " + " +
           std::to_string(padding) + " factor " + std::to_string(static_cast<int>(factor)) +
           (residual ? " residual" : "");
  }
};

// Every size of team, rows that fill none of them, and rows that no piece of 16 bytes divides.
std::vector<NormCase> NormCases() {
  std::vector<NormCase> cases;
  for (const Factor factor : {Factor::kNone, Factor::kGain, Factor::kGate}) {
    for (const bool residual : {false, true}) {
      for (const int64_t columns : {8, 256, 504, 1000, 2048, 2560, 6008, 16384}) {
        cases.push_back({columns > 4000 ? 5 : 37, columns, 8, factor, residual});
      }
      cases.push_back({1, 2048, 0, factor, residual});
      cases.push_back({0, 64, 0, factor, residual});
      cases.push_back({2000, 128, 16, factor, residual});  // more rows than blocks have teams
      cases.push_back({11, 129, 4, factor, residual});
      cases.push_back({7, 1, 0, factor, residual});
      cases.push_back({9, 2048, 3, factor, residual});
      cases.push_back({450, 137, 3, factor, residual});
      cases.push_back({3, 20000, 0, factor, residual});
    }
  }
  return cases;
}

class NormCudaTest : public OpsCudaTest {};

TEST_F(NormCudaTest, ForwardEqualsCpu) {
  for (const NormCase& c : NormCases()) {
    SCOPED_TRACE(c.name());
    const int64_t stride = c.columns + c.padding, width = std::max<int64_t>(stride, 1);
    const auto x = Bf16Matrix::Random(c.tokens, c.columns, width, 1, 3.0);
    const auto delta = Bf16Matrix::Random(c.tokens, c.columns, width, 2);
    const auto gate = Bf16Matrix::Random(c.tokens, c.columns, width, 3);
    const auto gain = Bf16Matrix::Random(1, c.columns, c.columns, 4);
    const DeviceArray<Bits> dx(x.data), ddelta(delta.data), dgate(gate.data), dgain(gain.data);
    std::vector<Bits> first;
    for (int run = 0; run < 2; ++run) {
      const DeviceArray<Bits> mid(x.data.size()), y(x.data.size());
      RmsNormForwardParams p;
      p.tokens = c.tokens;
      p.columns = c.columns;
      p.eps = static_cast<float>(kEps);
      p.x = dx.data();
      p.delta = c.residual ? ddelta.data() : nullptr;
      p.gain = c.factor == Factor::kGain ? dgain.data() : nullptr;
      p.gate = c.factor == Factor::kGate ? dgate.data() : nullptr;
      p.x_mid = c.residual ? mid.data() : nullptr;
      p.y = y.data();
      p.x_strides = p.delta_strides = p.gate_strides = p.x_mid_strides = p.y_strides = {width, 0};
      ASSERT_EQ(LaunchRmsNormForward(p, nullptr), cudaSuccess);
      const Bf16Matrix got = Downloaded(y, x);
      if (run == 1) {
        EXPECT_TRUE(SameBits(got.data, first));
        continue;
      }
      first = got.data;
      const Shape shape{c.tokens, c.columns};
      std::vector<double> sum = x.Dense();
      if (c.residual) {
        std::vector<double> d = delta.Dense();
        Add(context_, F64(sum, shape), F64(d, shape), F64(sum, shape));
        const Bf16Matrix got_mid = Downloaded(mid, x);
        ExpectRounded(got_mid, sum, "x_mid");
        sum = got_mid.Dense();
      }
      std::vector<double> want(sum.size()), g = gain.Dense(), u = gate.Dense();
      RmsNormForward(context_, F64(sum, shape),
                     c.factor == Factor::kGain ? F64(g, {c.columns}) : TensorView(), kEps,
                     F64(want, shape));
      if (c.factor == Factor::kGate) {
        Multiply(context_, F64(want, shape), F64(u, shape), F64(want, shape));
      }
      ExpectRounded(got, want, "y");
    }
  }
}

TEST_F(NormCudaTest, BackwardEqualsCpu) {
  for (const NormCase& c : NormCases()) {
    SCOPED_TRACE(c.name());
    const int64_t width = std::max<int64_t>(c.columns + c.padding, 1);
    const auto x = Bf16Matrix::Random(c.tokens, c.columns, width, 1, 3.0);
    const auto dy = Bf16Matrix::Random(c.tokens, c.columns, width, 2);
    const auto gate = Bf16Matrix::Random(c.tokens, c.columns, width, 3);
    const auto gain = Bf16Matrix::Random(1, c.columns, c.columns, 4);
    const auto dresidual = Bf16Matrix::Random(c.tokens, c.columns, width, 5, 0.1);
    const Shape shape{c.tokens, c.columns};
    std::vector<double> xs = x.Dense(), ones(xs.size(), 1.0), r(xs.size());
    RmsNormForward(context_, F64(xs, shape), {}, kEps, F64(r, shape));
    const DeviceArray<Bits> x_d(x.data), dy_d(dy.data), gate_d(gate.data), gain_d(gain.data);
    std::vector<Bits> first;
    std::vector<float> first_gain;
    for (int run = 0; run < 2; ++run) {
      // The residual's gradient is updated in place, as in the model.
      const DeviceArray<Bits> dx(c.residual ? dresidual.data
                                            : std::vector<Bits>(x.data.size(), kPoison));
      const DeviceArray<Bits> dgate(x.data.size());
      const DeviceArray<float> dgain(std::vector<float>(static_cast<size_t>(c.columns), 0.5f));
      const DeviceArray<std::byte> workspace(RmsNormBackwardWorkspaceBytes(c.tokens, c.columns));
      RmsNormBackwardParams p;
      p.tokens = c.tokens;
      p.columns = c.columns;
      p.x = x_d.data();
      p.eps = static_cast<float>(kEps);
      p.dy = dy_d.data();
      p.dx = dx.data();
      p.dresidual = c.residual ? dx.data() : nullptr;
      p.workspace = workspace.data();
      if (c.factor == Factor::kGain) {
        p.gain = gain_d.data();
        p.dgain = dgain.data();
      } else if (c.factor == Factor::kGate) {
        p.gate = gate_d.data();
        p.dgate = dgate.data();
      }
      p.x_strides = p.gate_strides = p.dy_strides = p.dresidual_strides = p.dx_strides =
          p.dgate_strides = {width, 0};
      ASSERT_EQ(LaunchRmsNormBackward(p, nullptr), cudaSuccess);
      const Bf16Matrix got = Downloaded(dx, x);
      const std::vector<float> got_gain = dgain.Download();
      if (run == 1) {
        EXPECT_TRUE(SameBits(got.data, first));
        EXPECT_TRUE(SameBits(got_gain, first_gain));
        continue;
      }
      first = got.data;
      first_gain = got_gain;
      std::vector<double> want =
          c.residual ? dresidual.Dense() : std::vector<double>(xs.size(), 0.0);
      std::vector<double> d = dy.Dense(), g = gain.Dense(), u = gate.Dense();
      std::vector<double> want_gain(static_cast<size_t>(c.columns), 0.5);
      const bool gain_given = c.factor == Factor::kGain;
      if (c.factor == Factor::kGate) {
        std::vector<double> want_gate = d;
        Multiply(context_, F64(want_gate, shape), F64(r, shape), F64(want_gate, shape));
        ExpectRounded(Downloaded(dgate, x), want_gate, "dgate");
        Multiply(context_, F64(d, shape), F64(u, shape), F64(d, shape));
      }
      RmsNormBackward(context_, F64(xs, shape), gain_given ? F64(g, {c.columns}) : TensorView(),
                      kEps, F64(d, shape), F64(want, shape), /*accumulate=*/true,
                      gain_given ? F64(want_gain, {c.columns}) : TensorView());
      if (c.residual) {
        // Poison between the rows was not there: it is the residual's.
        ExpectRounded(got, want, "dx");
      } else if (c.columns > 1) {  // of one column the gradient is all cancellation
        ExpectRounded(got, want, "dx");
      }
      ExpectFloats(got_gain, want_gain, 2e-6, "dgain");
    }
  }
}

// q and k norms: rows are heads inside a packed projection.
TEST_F(NormCudaTest, HeadsOfAProjection) {
  constexpr int64_t kTokens = 19, kHeads = 5, kDim = 64, kStride = 3 * kHeads * kDim + 8;
  const auto proj = Bf16Matrix::Random(kTokens, kHeads * kDim, kStride, 1);
  const auto gain = Bf16Matrix::Random(1, kDim, kDim, 2);
  const DeviceArray<Bits> x(proj.data), g(gain.data), y(proj.data.size());
  RmsNormForwardParams p;
  p.tokens = kTokens;
  p.heads = kHeads;
  p.columns = kDim;
  p.eps = static_cast<float>(kEps);
  p.x = x.data();
  p.gain = g.data();
  p.y = y.data();
  p.x_strides = p.y_strides = {kStride, kDim};
  ASSERT_EQ(LaunchRmsNormForward(p, nullptr), cudaSuccess);
  std::vector<double> in = proj.Dense(), want(in.size()), gains = gain.Dense();
  const Shape shape{kTokens, kHeads, kDim};
  RmsNormForward(context_, F64(in, shape), F64(gains, {kDim}), kEps, F64(want, shape));
  ExpectRounded(Downloaded(y, proj), want, "y");
}

TEST_F(NormCudaTest, RefusesContradictions) {
  RmsNormForwardParams p;
  p.columns = 8;
  p.tokens = -1;
  EXPECT_EQ(LaunchRmsNormForward(p, nullptr), cudaErrorInvalidValue);
  p.tokens = 1;
  p.gain = p.gate = &p;
  EXPECT_EQ(LaunchRmsNormForward(p, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace evenkeel
