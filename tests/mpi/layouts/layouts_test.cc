// Any layout trains the same model: loss, every gradient and, after some steps, every weight are
// those of one rank. In float64, where rounding is far below what a wrong term would cost.
//
// EVENKEEL_LAYOUT_DRAWS: how many layouts to draw; EVENKEEL_LAYOUT_SEED: the first of them;
// EVENKEEL_LAYOUT_VERBOSE: print each. By hand, some hundreds on each number of ranks:
//
//   for n in 1 2 3 4 5 6 7 8; do
//     EVENKEEL_LAYOUT_DRAWS=200 EVENKEEL_LAYOUT_SEED=1000 mpirun --oversubscribe -np $n
//       build/cpu/tests/mpi/layouts/mpi_layouts_test --gtest_filter='Layouts.TrainTheSameModel'
//   done
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>

#include "runtime/comm/mpi_runtime.h"
#include "tests/mpi/layouts/layout_run.h"

namespace evenkeel {
namespace {

using testing_support::BatchesOf;
using testing_support::CountTargets;
using testing_support::DrawLayout;
using testing_support::DrawLongLayout;
using testing_support::DrawPooledLayout;
using testing_support::EveryModelOnOneAxis;
using testing_support::LayoutCase;
using testing_support::PartRun;
using testing_support::StepOutcome;
using testing_support::WholeRun;

int64_t FromEnvironment(const char* name, int64_t otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoll(text);
}

class Layouts : public testing::Test {
 protected:
  Layouts() : mpi_(*MpiRuntime::Create({.timeout_s = 60})), comm_(mpi_.world()) {}

  // Whether a rank has seen a failure. All ranks leave together: none waits for one that has left.
  bool AnyHasFailed() {
    int64_t failed = HasFailure() ? 1 : 0;
    EXPECT_TRUE(
        comm_.AllReduce(TensorView(&failed, DType::kI64, {1}), ReduceOp::kMax, "failed").ok());
    return failed != 0;
  }

  void DrawAndCompare(LayoutCase (*draw)(uint64_t seed, int ranks));

  MpiRuntime mpi_;
  Communicator& comm_;
};

// Compares what the rank owns with the whole: the largest difference over the largest value.
template <typename T>
void ExpectSame(const PartRun& part, const WholeRun& whole, ConstTensorView mine,
                ConstTensorView all, double tolerance, const char* what,
                const std::string& layout) {
  double largest = 0, worst = 0;
  std::string where;
  for (int64_t i = 0; i < all.num_elements(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(all.as<T>()[i])));
  }
  part.ForEachElement(whole.model.layout(),
                      [&](int64_t owned, int64_t full, const ParameterSpec& spec) {
                        const double difference =
                            std::abs(static_cast<double>(mine.as<T>()[owned] - all.as<T>()[full]));
                        if (difference <= worst && !std::isnan(difference)) return;
                        worst = difference;
                        where = spec.name;
                      });
  EXPECT_LE(worst, tolerance * largest) << what << " of " << where << ", " << layout;
}

// Gradients of one step, then `steps` updates.
template <typename T>
void Compare(const LayoutCase& layout, Communicator& comm, int steps, double tolerance,
             double later_tolerance) {
  const DType dtype = DTypeOf<T>::value;
  SCOPED_TRACE(layout.ToString());
  WholeRun whole(layout, dtype);
  PartRun part(layout, comm, dtype);
  for (int step = 0; step < std::max(1, steps); ++step) {
    const auto batches = BatchesOf(layout, static_cast<uint64_t>(100 * step + 1));
    const double scale = 1.0 / static_cast<double>(std::max<int64_t>(1, CountTargets(batches)));
    const StepOutcome want = whole.Gradients(layout, batches, scale);
    const StepOutcome have = part.Gradients(layout, batches, scale);
    const double allowed = step == 0 ? tolerance : later_tolerance;
    EXPECT_NEAR(have.loss * scale, want.loss * scale, allowed * std::abs(want.loss * scale))
        << layout.ToString();
    EXPECT_NEAR(have.squares, want.squares, 10 * allowed * want.squares) << layout.ToString();
    ExpectSame<T>(part, whole, part.model.gradients().view(), whole.model.gradients().view(),
                  allowed, "gradient", layout.ToString());
    if (steps == 0) return;
    AdamWStepParams params;
    // So small that the rounding of one step does not grow by the next: with 1e-3 some models
    // differ from themselves by 1e-9 after 20 steps if their micro-batches are added in another
    // order.
    params.lr = 1e-4;
    params.step = step + 1;
    params.clip_norm = 0.5;
    whole.optimizer.Update(whole.runtime.context, params, whole.model,
                           TensorView(const_cast<double*>(&want.squares), DType::kF64, {1}));
    part.optimizer.Update(part.runtime.context, params, part.model,
                          TensorView(const_cast<double*>(&have.squares), DType::kF64, {1}));
  }
  ExpectSame<T>(part, whole, part.model.weights().view(), whole.model.weights().view(),
                later_tolerance, "weight", layout.ToString());
}

void Layouts::DrawAndCompare(LayoutCase (*draw)(uint64_t seed, int ranks)) {
  const int64_t draws = FromEnvironment("EVENKEEL_LAYOUT_DRAWS", 12);
  const auto seed = static_cast<uint64_t>(FromEnvironment("EVENKEEL_LAYOUT_SEED", 1));
  for (int64_t i = 0; i < draws; ++i) {
    const LayoutCase layout = draw(seed + static_cast<uint64_t>(i), comm_.size());
    if (std::getenv("EVENKEEL_LAYOUT_VERBOSE") != nullptr && comm_.rank() == 0) {
      std::printf("%s\n", layout.ToString().c_str());
      std::fflush(stdout);
    }
    // Every second goes on for 2 steps, every fourth, if they are short, for 20.
    const int steps = i % 2 == 0 ? 0 : i % 4 == 1 || layout.most_tokens() > 1000 ? 2 : 20;
    Compare<double>(layout, comm_, steps, 1e-12, 1e-10);
    if (AnyHasFailed()) return;
  }
}

TEST_F(Layouts, TrainTheSameModel) {
  DrawAndCompare(DrawLayout);
}

TEST_F(Layouts, TrainTheSameModelWithDisaggregatedAttention) {
  DrawAndCompare(DrawPooledLayout);
}

TEST_F(Layouts, TrainTheSameModelOfEveryKindOnOneAxis) {
  for (const LayoutCase& layout : EveryModelOnOneAxis(700, comm_.size())) {
    Compare<double>(layout, comm_, 0, 1e-12, 1e-12);
    if (AnyHasFailed()) return;
  }
}

TEST_F(Layouts, TrainTheSameModelOnLongMicroBatches) {
  uint64_t seed = 900;
  for (const Recompute recompute :
       {Recompute::kNone, Recompute::kMlp, Recompute::kAllButAttention, Recompute::kLayer}) {
    Compare<double>(DrawLongLayout(++seed, comm_.size(), recompute), comm_, 0, 1e-12, 1e-12);
    if (AnyHasFailed()) return;
  }
}

TEST_F(Layouts, TrainTheSameModelInSinglePrecision) {
  for (uint64_t seed = 500; seed < 503; ++seed) {
    Compare<float>(DrawLayout(seed, comm_.size()), comm_, 0, 1e-5, 1e-5);
    if (AnyHasFailed()) return;
  }
}

}  // namespace
}  // namespace evenkeel
