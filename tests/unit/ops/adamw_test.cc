#include "runtime/ops/adamw.h"

#include "tests/unit/ops/op_fixture.h"

namespace evenkeel {
namespace {

// The steps of torch.optim.AdamW for one parameter, in its order and in float64.
struct TorchAdamW {
  double weight, exp_avg = 0, exp_avg_sq = 0;

  void Step(const AdamWConfig& config, double lr, int64_t step, double gradient) {
    const double t = static_cast<double>(step);
    weight *= 1 - lr * config.weight_decay;
    exp_avg += (1 - config.beta1) * (gradient - exp_avg);  // lerp
    exp_avg_sq = exp_avg_sq * config.beta2 + (1 - config.beta2) * gradient * gradient;
    const double bias_correction1 = 1 - std::pow(config.beta1, t);
    const double bias_correction2 = 1 - std::pow(config.beta2, t);
    const double denominator = std::sqrt(exp_avg_sq) / std::sqrt(bias_correction2) + config.eps;
    weight -= lr / bias_correction1 * exp_avg / denominator;
  }
};

template <typename T>
void CheckTenSteps(double tolerance) {
  const AdamWConfig config = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-3, .weight_decay = 0.3};
  const double gradient_scale = 0.37;
  OpRunner runner(2, DTypeOf<T>::value);
  for (int64_t n : {0, 1, 5003}) {
    auto weight = RandomNormal<T>(n, 1);
    std::vector<T> exp_avg(weight.size()), exp_avg_sq(weight.size());
    std::vector<TorchAdamW> reference;
    for (T w : weight) reference.push_back({.weight = static_cast<double>(w)});
    for (int64_t step = 1; step <= 10; ++step) {
      const double lr = 0.01 * static_cast<double>(step);
      const auto gradient = RandomNormal<T>(n, 100 + static_cast<uint64_t>(step), 0.1);
      AdamWStep(runner.context(), config, lr, step, gradient_scale, ViewOf(gradient, {n}),
                ViewOf(weight, {n}), ViewOf(exp_avg, {n}), ViewOf(exp_avg_sq, {n}));
      for (size_t i = 0; i < reference.size(); ++i) {
        reference[i].Step(config, lr, step, gradient_scale * static_cast<double>(gradient[i]));
      }
    }
    std::vector<double> w, m, v;
    for (const auto& parameter : reference) {
      w.push_back(parameter.weight);
      m.push_back(parameter.exp_avg);
      v.push_back(parameter.exp_avg_sq);
    }
    EXPECT_LT(MaxError(weight, w), tolerance);
    EXPECT_LT(MaxError(exp_avg, m), tolerance);
    EXPECT_LT(MaxError(exp_avg_sq, v), tolerance);
  }
}

TEST(AdamWTest, MatchesTorchOverTenSteps) {
  CheckTenSteps<double>(1e-14);
  CheckTenSteps<float>(1e-6);
}

// A parameter that never had a gradient only decays, whatever eps is.
TEST(AdamWTest, ZeroGradientOnlyDecays) {
  OpRunner runner(1);
  std::vector<double> gradient(3, 0.0), weight = {1, -2, 3}, m(3, 0.0), v(3, 0.0);
  AdamWStep(runner.context(), {}, 0.1, 1, 1, ViewOf(gradient, {3}), ViewOf(weight, {3}),
            ViewOf(m, {3}), ViewOf(v, {3}));
  EXPECT_LT(MaxError(weight, std::vector<double>{0.99, -1.98, 2.97}), 1e-15);
}

TEST(AdamWTest, NanGradientReachesItsWeightOnly) {
  OpRunner runner(1, DType::kF32);
  std::vector<float> gradient(40, 1), weight(40, 1), m(40, 0), v(40, 0);
  gradient[7] = NAN;
  AdamWStep(runner.context(), {}, 0.1, 1, 1, ViewOf(gradient, {40}), ViewOf(weight, {40}),
            ViewOf(m, {40}), ViewOf(v, {40}));
  for (size_t i = 0; i < weight.size(); ++i) EXPECT_EQ(std::isnan(weight[i]), i == 7);
}

TEST(AdamWTest, BitsDoNotDependOnThreads) {
  const int64_t n = 4096 * 3 + 37;
  const auto gradient = RandomNormal<float>(n, 1), weight = RandomNormal<float>(n, 2);
  const auto m = RandomNormal<float>(n, 3);
  ExpectSameOnAnyThreads(DType::kF32, [&](const OpContext& context) {
    auto w = weight, exp_avg = m;
    std::vector<float> exp_avg_sq(weight.size(), 0.3f);
    AdamWStep(context, {}, 1e-2, 3, 0.9, ViewOf(gradient, {n}), ViewOf(w, {n}),
              ViewOf(exp_avg, {n}), ViewOf(exp_avg_sq, {n}));
    w.insert(w.end(), exp_avg.begin(), exp_avg.end());
    w.insert(w.end(), exp_avg_sq.begin(), exp_avg_sq.end());
    return w;
  });
}

}  // namespace
}  // namespace evenkeel
