// Ops of ranks that share rows: slices of the vocabulary, columns of a norm.
#include <limits>

#include "runtime/ops/cross_entropy.h"
#include "runtime/ops/cross_entropy_slices.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/norm.h"
#include "runtime/ops/split_norm.h"
#include "tests/gpu/ops_cuda_fixture.h"

namespace evenkeel {
namespace {

constexpr double kEps = 1e-5;

TensorView MatrixOn(const DeviceArray<Bits>& array, const Bf16Matrix& like) {
  return OnDevice(array, DType::kBF16, {like.rows, like.stride}).Columns(0, like.columns);
}

class SplitCudaTest : public GpuOpsTest {
 protected:
  struct SliceResult {
    std::vector<float> statistics, losses;
    Bf16Matrix gradient;
  };

  // Columns [bounds[p], bounds[p + 1]) of z are slice p.
  SliceResult Sliced(const Bf16Matrix& z, const std::vector<int64_t>& bounds,
                     const std::vector<int32_t>& targets, double scale) {
    const auto slices = static_cast<int64_t>(bounds.size()) - 1;
    const DeviceArray<Bits> logits(z.data);
    const DeviceArray<float> all(static_cast<size_t>(slices * z.rows * 3));
    const DeviceArray<float> alone(targets.size());
    const TensorView view = MatrixOn(logits, z);
    const TensorView statistics = OnDevice(all, DType::kF32, {slices, z.rows, 3});
    const auto slice = [&](size_t p) { return view.Columns(bounds[p], bounds[p + 1]); };
    SliceResult result;
    for (size_t p = 0; p + 1 < bounds.size(); ++p) {
      const auto at = static_cast<int64_t>(p);
      OnGpu([&](const OpContext& context) {
        CrossEntropySliceStatistics(context, slice(p), targets, bounds[p],
                                    statistics.Rows(at, at + 1).Reshape({z.rows, 3}));
      });
    }
    result.statistics = all.Download();
    EXPECT_TRUE(SameBits(logits.Download(), z.data)) << "the logits are only read";
    OnGpu([&](const OpContext& context) {
      CrossEntropySliceGradient(context, statistics, targets, 0, scale, TensorView(),
                                OnDevice(alone, DType::kF32, {z.rows}));
    });
    result.losses = alone.Download();
    for (size_t p = 0; p + 1 < bounds.size(); ++p) {
      const DeviceArray<float> losses(targets.size());
      OnGpu([&](const OpContext& context) {
        CrossEntropySliceGradient(context, statistics, targets, bounds[p], scale, slice(p),
                                  OnDevice(losses, DType::kF32, {z.rows}));
      });
      EXPECT_TRUE(SameBits(losses.Download(), result.losses)) << "losses of slice " << p;
    }
    result.gradient = Downloaded(logits, z);
    return result;
  }
};

struct SliceCase {
  int64_t tokens;
  std::vector<int64_t> bounds;
  int64_t padding;
};

const SliceCase kSliceCases[] = {{7, {0, 32064, 64128, 96192, 128256}, 0},
                                 {5, {0, 50257}, 0},
                                 {300, {0, 1000, 2000}, 4},
                                 {9, {0, 1001, 2056}, 16},
                                 {33, {0, 1000, 2001}, 7},
                                 {17, {0, 4, 8, 8, 64, 64}, 8},
                                 {6, {0, 0, 1003}, 5},
                                 {1, {0, 1}, 0},
                                 {0, {0, 8, 16}, 0}};

TEST_F(SplitCudaTest, SlicesOfTheVocabularyEqualCpu) {
  for (const SliceCase& c : kSliceCases) {
    const int64_t vocab = c.bounds.back(), tokens = c.tokens;
    SCOPED_TRACE(vocab);
    const double scale = 1.0 / 64;
    const auto z = Bf16Matrix::Random(tokens, vocab, vocab + c.padding, 1, 3.0);
    std::vector<int32_t> targets;
    for (int64_t t = 0; t < tokens; ++t) {
      targets.push_back(t % 4 == 1 ? kIgnoredTarget : static_cast<int32_t>(t * 7919 % vocab));
    }
    const SliceResult got = Sliced(z, c.bounds, targets, scale);

    std::vector<double> dense = z.Dense(), want_loss(targets.size());
    for (size_t p = 0; p + 1 < c.bounds.size(); ++p) {
      std::vector<double> want(static_cast<size_t>(tokens * 3));
      CrossEntropySliceStatistics(context_,
                                  F64(dense, {tokens, vocab}).Columns(c.bounds[p], c.bounds[p + 1]),
                                  targets, c.bounds[p], F64(want, {tokens, 3}));
      for (size_t i = 0; i < want.size(); ++i) {
        const auto value = static_cast<double>(got.statistics[p * want.size() + i]);
        if (i % 3 == 1) {
          EXPECT_NEAR(value, want[i], 2e-6 * want[i]) << "sum of slice " << p;
        } else {
          EXPECT_EQ(value, want[i]) << "slice " << p << " at " << i;
        }
      }
    }
    CrossEntropyForwardBackward(context_, targets, scale, F64(dense, {tokens, vocab}),
                                F64(want_loss, {tokens}));
    ExpectRounded(got.gradient, dense, "gradient");
    ExpectFloats(got.losses, want_loss, 1e-6, "losses");

    const SliceResult again = Sliced(z, c.bounds, targets, scale);
    EXPECT_TRUE(SameBits(again.gradient.data, got.gradient.data));
    EXPECT_TRUE(SameBits(again.losses, got.losses));
  }
}

// NaN, +inf and nothing but -inf in any slice have no softmax on any rank; a slice of nothing but
// -inf beside others is fine.
TEST_F(SplitCudaTest, HostileLogitsOfASlice) {
  for (const std::vector<int64_t>& bounds :
       {std::vector<int64_t>{0, 32, 64, 96}, std::vector<int64_t>{0, 11, 33, 61}}) {
    const int64_t vocab = bounds.back();
    Bf16Matrix z = Bf16Matrix::Random(5, vocab, vocab, 1);
    const Bits infinity = ToBits(std::numeric_limits<double>::infinity());
    const Bits lowest = ToBits(-std::numeric_limits<double>::infinity());
    z.at(0, 7) = kPoison;
    z.at(1, vocab - 1) = infinity;
    for (int64_t i = 0; i < vocab; ++i) z.at(2, i) = lowest;
    for (int64_t i = bounds[1]; i < bounds[2]; ++i) z.at(3, i) = lowest;
    z.at(4, 2) = kPoison;
    const std::vector<int32_t> targets = {static_cast<int32_t>(vocab - 2), 1, 1, 3, kIgnoredTarget};
    const SliceResult got = Sliced(z, bounds, targets, 1.0);
    for (int64_t row = 0; row < 3; ++row) {
      EXPECT_TRUE(std::isnan(got.losses[static_cast<size_t>(row)])) << row;
      for (int64_t i = 0; i < vocab; ++i) {
        EXPECT_TRUE(std::isnan(FromBits(got.gradient.at(row, i)))) << row << " " << i;
      }
    }
    EXPECT_EQ(got.losses[4], 0.0f);
    for (int64_t i = 0; i < vocab; ++i) EXPECT_EQ(FromBits(got.gradient.at(4, i)), 0.0);
    std::vector<double> want = z.Dense(), want_loss(targets.size());
    CrossEntropyForwardBackward(context_, targets, 1.0, F64(want, {5, vocab}), F64(want_loss, {5}));
    EXPECT_NEAR(static_cast<double>(got.losses[3]), want_loss[3], 1e-5);
    for (int64_t i = bounds[1]; i < bounds[2]; ++i) EXPECT_EQ(FromBits(got.gradient.at(3, i)), 0.0);
  }
}

struct NormCase {
  int64_t tokens;
  std::vector<int64_t> bounds;  // columns [bounds[p], bounds[p + 1]) are on rank p
  int64_t padding;
};

// A warp a row and eight, with rows that fill neither; rows that no piece of 16 bytes divides; a
// rank without columns.
const NormCase kNormCases[] = {
    {37, {0, 256}, 8},       {37, {0, 120, 256}, 8},  {5, {0, 2048, 4096}, 0},
    {5, {0, 2056, 2064}, 8}, {2, {0, 16384}, 0},      {3, {0, 8, 6000}, 8},
    {1, {0, 8, 16}, 0},      {0, {0, 64}, 0},         {11, {0, 60, 129}, 4},
    {7, {0, 0, 1}, 0},       {9, {0, 1024, 2048}, 3}, {2001, {0, 64, 128}, 16},
    {40, {0, 3, 300}, 1}};

TEST_F(SplitCudaTest, NormOfSplitColumnsEqualsCpu) {
  for (const NormCase& c : kNormCases) {
    for (const bool gated : {false, true}) {
      const int64_t tokens = c.tokens, columns = c.bounds.back(), width = columns + c.padding;
      SCOPED_TRACE(testing::Message()
                   << tokens << " x " << columns << " + " << c.padding << (gated ? " gated" : ""));
      const auto x = Bf16Matrix::Random(tokens, columns, width, 1, 3.0);
      const auto dy = Bf16Matrix::Random(tokens, columns, width, 2);
      // The gate is the second half of a projection, and so is its gradient.
      const int64_t gate_width = 2 * columns + c.padding;
      const auto projection = Bf16Matrix::Random(tokens, 2 * columns, gate_width, 3);
      std::vector<double> xs = x.Dense(), d = dy.Dense(),
                          u = projection.Dense(columns, 2 * columns);
      std::vector<double> want(xs.size()), want_dx(xs.size()), want_dgate(xs.size());
      const Shape shape = {tokens, columns};
      if (gated) {
        GatedRmsNormForward(context_, F64(xs, shape), F64(u, shape), kEps, F64(want, shape));
        GatedRmsNormBackward(context_, F64(xs, shape), F64(u, shape), kEps, F64(d, shape),
                             F64(want_dx, shape), F64(want_dgate, shape));
      } else {
        RmsNormForward(context_, F64(xs, shape), {}, kEps, F64(want, shape));
        RmsNormBackward(context_, F64(xs, shape), {}, kEps, F64(d, shape), F64(want_dx, shape),
                        /*accumulate=*/false, {});
      }

      std::vector<Bits> first;
      for (int run = 0; run < 2; ++run) {
        const DeviceArray<Bits> x_d(x.data), dx(dy.data), projection_d(projection.data);
        const DeviceArray<Bits> y(x.data.size()), dprojection(projection.data.size());
        const std::vector<float> zeros(static_cast<size_t>(tokens));
        const DeviceArray<float> sums(zeros), dots(zeros), here(zeros.size());
        const auto floats = [&](const DeviceArray<float>& array) {
          return OnDevice(array, DType::kF32, {tokens});
        };
        const auto gates = [&](const DeviceArray<Bits>& array) {
          return OnDevice(array, DType::kBF16, {tokens, gate_width}).Columns(columns, 2 * columns);
        };
        OnGpu([&](const OpContext& context) {
          const auto on_each_rank = [&](const auto& op) {
            for (size_t p = 0; p + 1 < c.bounds.size(); ++p) {
              op([&](TensorView view) { return view.Columns(c.bounds[p], c.bounds[p + 1]); });
            }
          };
          const auto gate_of = [&](const auto& part, const DeviceArray<Bits>& array) {
            return gated ? part(gates(array)) : TensorView();
          };
          on_each_rank([&](const auto& part) {
            RowSquares(context, part(MatrixOn(x_d, x)), floats(here));
            AddWide(context, floats(here), floats(sums));
          });
          on_each_rank([&](const auto& part) {
            SplitNormForward(context, part(MatrixOn(x_d, x)), gate_of(part, projection_d),
                             floats(sums), columns, kEps, part(MatrixOn(y, x)));
            SplitNormDots(context, part(MatrixOn(x_d, x)), gate_of(part, projection_d),
                          floats(sums), columns, kEps, part(MatrixOn(dx, dy)), floats(here));
            AddWide(context, floats(here), floats(dots));
          });
          on_each_rank([&](const auto& part) {  // dx in place of dy
            SplitNormBackward(context, part(MatrixOn(x_d, x)), gate_of(part, projection_d),
                              floats(sums), floats(dots), columns, kEps, part(MatrixOn(dx, dy)),
                              part(MatrixOn(dx, dy)), gate_of(part, dprojection));
          });
        });
        const Bf16Matrix got_dx = Downloaded(dx, dy);
        std::vector<Bits> all = got_dx.data;
        for (const auto* array : {&y, &dprojection}) {
          const std::vector<Bits> more = array->Download();
          all.insert(all.end(), more.begin(), more.end());
        }
        if (run == 1) {
          EXPECT_TRUE(SameBits(all, first));
          continue;
        }
        first = all;
        ExpectRounded(Downloaded(y, x), want, "y");
        if (columns > 1) ExpectRounded(got_dx, want_dx, "dx");  // of one: all cancellation
        const Bf16Matrix got_projection = Downloaded(dprojection, projection);
        Bf16Matrix got_dgate = Bf16Matrix::Poison(tokens, columns, columns);
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t i = 0; i < gate_width; ++i) {
            if (gated && columns <= i && i < 2 * columns) {
              got_dgate.at(t, i - columns) = got_projection.at(t, i);
            } else {
              ASSERT_EQ(got_projection.at(t, i), kPoison) << "beside the gate's gradient";
            }
          }
        }
        if (gated) ExpectRounded(got_dgate, want_dgate, "dgate");
      }
    }
  }
}

}  // namespace
}  // namespace evenkeel
