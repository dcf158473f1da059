// Urpe: a reflection and a rotation, both orthogonal.
#include "runtime/ops/cuda/urpe_cuda.h"
#include "runtime/ops/urpe.h"
#include "tests/gpu/ops_cuda_fixture.h"

namespace evenkeel {
namespace {

struct UrpeCase {
  int64_t tokens, heads, dim, padding;
  std::string name() const {
    return std::to_string(tokens) + " x " + std::to_string(heads) + " x " + std::to_string(dim) +
           " + " + std::to_string(padding);
  }
};

// Every size of team, teams that a head does not fill, heads that do not fill the teams, more
// tokens than blocks, and what no piece of 16 bytes divides.
const UrpeCase kCases[] = {{37, 5, 64, 8}, {9, 24, 128, 0},  {3, 70, 256, 8}, {1, 1, 8, 0},
                           {0, 2, 32, 0},  {19, 9, 32, 16},  {50, 3, 96, 8},  {21, 1, 200, 0},
                           {7, 17, 16, 0}, {5000, 2, 64, 0}, {7, 3, 6, 1},    {1, 1, 2, 0},
                           {4, 2, 64, 3},  {600, 5, 10, 0},  {3, 6, 320, 8},  {3, 2, 514, 1}};

// A random unit vector.
std::vector<float> Reflection(int64_t dim) {
  std::vector<float> u = RandomFloats(dim, 7);
  double squares = 0.0;
  for (const float x : u) squares += static_cast<double>(x) * static_cast<double>(x);
  for (float& x : u) x = static_cast<float>(static_cast<double>(x) / std::sqrt(squares));
  return u;
}

// Documents that begin anywhere, one of them a million tokens in.
std::vector<int64_t> Positions(int64_t tokens) {
  std::vector<int64_t> positions;
  for (int64_t t = 0; t < tokens; ++t) {
    positions.push_back(t < 21 ? t : t < 45 ? 1000000 + t : t - 45);
  }
  return positions;
}

class UrpeCudaTest : public OpsCudaTest {};

TEST_F(UrpeCudaTest, ForwardEqualsCpu) {
  for (const UrpeCase& s : kCases) {
    SCOPED_TRACE(s.name());
    const int64_t columns = s.heads * s.dim, stride = columns + s.padding;
    const auto x = Bf16Matrix::Random(s.tokens, columns, stride, 1);
    const std::vector<float> theta = RandomFloats(s.dim / 2, 3), u = Reflection(s.dim);
    const std::vector<int64_t> positions = Positions(s.tokens);
    const DeviceArray<float> theta_d(theta), u_d(u);
    const DeviceArray<int64_t> positions_d(positions);
    const DeviceArray<Bits> x_d(x.data), y_d(x.data.size());
    UrpeForwardParams p;
    p.tokens = s.tokens;
    p.heads = s.heads;
    p.head_dim = s.dim;
    p.positions = positions_d.data();
    p.theta = theta_d.data();
    p.reflection = u_d.data();
    p.x = x_d.data();
    p.y = y_d.data();
    p.x_stride = p.y_stride = stride;
    ASSERT_EQ(LaunchUrpeForward(p, nullptr), cudaSuccess);
    const Bf16Matrix got = Downloaded(y_d, x);
    const Shape shape{s.tokens, s.heads, s.dim};
    std::vector<double> in = x.Dense(), want(in.size()), th = ToDouble(theta), us = ToDouble(u);
    UrpeForward(context_, F64(in, shape), F64(th, {s.dim / 2}), F64(us, {s.dim}), positions,
                F64(want, shape));
    ExpectRounded(got, want, "y");
    p.y = x_d.data();
    ASSERT_EQ(LaunchUrpeForward(p, nullptr), cudaSuccess);
    EXPECT_TRUE(SameBits(x_d.Download(), got.data)) << "in place";
  }
}

TEST_F(UrpeCudaTest, BackwardEqualsCpu) {
  for (const UrpeCase& s : kCases) {
    SCOPED_TRACE(s.name());
    const int64_t columns = s.heads * s.dim, stride = columns + s.padding;
    const auto y = Bf16Matrix::Random(s.tokens, columns, stride, 1);
    const auto dy = Bf16Matrix::Random(s.tokens, columns, stride, 2);
    const std::vector<float> theta = RandomFloats(s.dim / 2, 3), u = Reflection(s.dim);
    const std::vector<int64_t> positions = Positions(s.tokens);
    const DeviceArray<float> theta_d(theta), u_d(u);
    const DeviceArray<int64_t> positions_d(positions);
    const DeviceArray<Bits> y_d(y.data);
    std::vector<Bits> first;
    std::vector<float> first_dtheta;
    for (int run = 0; run < 2; ++run) {
      const DeviceArray<Bits> dy_d(dy.data), dx_d(y.data.size());
      const DeviceArray<float> dtheta(std::vector<float>(theta.size(), 0.25f));
      const DeviceArray<std::byte> workspace(UrpeBackwardWorkspaceBytes(s.tokens, s.dim));
      UrpeBackwardParams p;
      p.tokens = s.tokens;
      p.heads = s.heads;
      p.head_dim = s.dim;
      p.positions = positions_d.data();
      p.theta = theta_d.data();
      p.reflection = u_d.data();
      p.y = y_d.data();
      p.dy = dy_d.data();
      p.dx = run == 0 ? dx_d.data() : dy_d.data();  // the second time in place
      p.dtheta = dtheta.data();
      p.workspace = workspace.data();
      p.y_stride = p.dy_stride = p.dx_stride = stride;
      ASSERT_EQ(LaunchUrpeBackward(p, nullptr), cudaSuccess);
      const Bf16Matrix got = Downloaded(run == 0 ? dx_d : dy_d, y);
      const std::vector<float> got_dtheta = dtheta.Download();
      if (run == 1) {
        EXPECT_TRUE(SameBits(got.data, first));
        EXPECT_TRUE(SameBits(got_dtheta, first_dtheta));
        continue;
      }
      first = got.data;
      first_dtheta = got_dtheta;
      const Shape shape{s.tokens, s.heads, s.dim}, rates{s.dim / 2};
      std::vector<double> out = y.Dense(), d = dy.Dense(), want(d.size()), th = ToDouble(theta);
      std::vector<double> us = ToDouble(u), want_dtheta(theta.size(), 0.25);
      UrpeBackward(context_, F64(out, shape), F64(th, rates), F64(us, {s.dim}), positions,
                   F64(d, shape), F64(want, shape), F64(want_dtheta, rates));
      ExpectRounded(got, want, "dx");
      ExpectFloats(got_dtheta, want_dtheta, 1e-5, "dtheta");
    }
  }
}

TEST_F(UrpeCudaTest, RefusesOddHeads) {
  UrpeForwardParams p;
  p.tokens = p.heads = 1;
  p.head_dim = 3;
  EXPECT_EQ(LaunchUrpeForward(p, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace evenkeel
