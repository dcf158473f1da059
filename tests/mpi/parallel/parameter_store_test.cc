// Weights and gradients are small integers, so that every sum is exact and equality is demanded.
#include "parallel/parameter_store.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include "runtime/comm/mpi_runtime.h"

namespace evenkeel {
namespace {

constexpr ShardingStage kStages[] = {ShardingStage::kNone, ShardingStage::kOptimizer,
                                     ShardingStage::kGradients, ShardingStage::kParameters};

// What a model is here: unit 1 is the embedding, which the last unit shares (tied), unit 0 what ops
// read unrounded. Unit 3 is empty.
constexpr int64_t kSizes[] = {6, 40, 10, 0, 25, 17, 90, 7};
constexpr int kUnits = static_cast<int>(std::size(kSizes));
constexpr int kTied = 1, kHead = kUnits - 1;

// Sizes above, times the number of ranks.
std::vector<int64_t> UnitBegin(int ranks) {
  std::vector<int64_t> begin = {0};
  for (const int64_t size : kSizes) begin.push_back(begin.back() + size * ranks);
  return begin;
}

double Weight(int64_t step, int64_t i) {
  return static_cast<double>(i % 1009 + 2000 * step);
}

// `use`: an embedding's gradient has two terms.
double Gradient(int rank, int64_t step, int64_t micro_batch, int use, int64_t i) {
  return static_cast<double>((i * 7 + step * 3 + micro_batch) % 101 + 1000 * rank + 17 * use);
}

class Store : public testing::Test {
 protected:
  Store()
      : mpi_(*MpiRuntime::Create({.timeout_s = 20})),
        comm_(mpi_.world()),
        axis_(comm_, "data", log_),
        pool_(1),
        arena_(*Arena::Create(int64_t{1} << 30, arena_tracker_)) {}

  OpContext Context(DType dtype) { return {pool_, arena_, dtype}; }
  ParameterStore Create(const OpContext& context, std::vector<int64_t> unit_begin,
                        ShardingStage stage) {
    ParameterStoreOptions options;
    options.stage = stage;
    options.data = &axis_;
    options.bucket_elements = 100;
    return *ParameterStore::Create(context, std::move(unit_begin), options, tracker_);
  }
  int64_t AllGathers() { return log_.volumes().at({"data", "all-gather"}).calls; }

  MpiRuntime mpi_;
  Communicator& comm_;
  CommLog log_;
  AxisComm axis_;
  MemoryTracker tracker_, arena_tracker_;
  ThreadPool pool_;
  Arena arena_;
};

// Steps of a run, as a model and an optimizer make them.
template <typename T>
class StoreRun {
 public:
  StoreRun(const OpContext& context, ParameterStore& store, const AxisComm& axis)
      : context_(context), store_(store), axis_(axis), unit_begin_(UnitBegin(axis.size())) {}

  // Writes what this rank owns of the weights before step `step`.
  void WriteWeights(int64_t step, bool is_rounded) {
    for (const RowRange& range : store_.owned()) {
      for (int64_t i = 0; i < range.count; ++i) {
        store_.master().view().template as<T>()[range.to + i] =
            static_cast<T>(Weight(step, range.from + i));
      }
    }
    store_.PublishWeights(context_, is_rounded);
  }

  void ForwardBackward(int64_t step, int64_t micro_batch, bool is_last) {
    CheckWeights(Acquire(kTied), kTied, step);
    store_.PrefetchWeights(context_, 2);
    store_.ReleaseWeights(kTied);
    for (int unit = 2; unit < kHead; ++unit) {
      CheckWeights(Acquire(unit), unit, step);
      if (unit + 1 < kHead) store_.PrefetchWeights(context_, unit + 1);
      store_.ReleaseWeights(unit);
    }
    CheckWeights(store_.exact(), 0, step);

    // Head and embedding are held at a time.
    const ConstTensorView head = Acquire(kHead), tied = Acquire(kTied);
    CheckWeights(head, kHead, step);
    CheckWeights(tied, kTied, step);
    const TensorView dhead = store_.AcquireGradients(context_, kHead);
    const TensorView dtied = store_.AcquireGradients(context_, kTied);
    AddGradient(dhead, kHead, step, micro_batch, 0);
    AddGradient(dtied, kTied, step, micro_batch, 1);
    store_.ReleaseGradients(kTied, /*is_final=*/false);
    store_.ReleaseWeights(kHead);
    store_.ReleaseWeights(kTied);
    store_.ReleaseGradients(kHead, is_last);
    for (int unit = kHead - 1; unit >= 2; --unit) {
      CheckWeights(Acquire(unit), unit, step);
      if (unit > 2) store_.PrefetchWeights(context_, unit - 1);
      AddGradient(store_.AcquireGradients(context_, unit), unit, step, micro_batch, 0);
      store_.ReleaseWeights(unit);
      store_.ReleaseGradients(unit, is_last);
    }
    // Every second micro-batch has no second use of the embedding.
    if (micro_batch % 2 == 0) {
      AddGradient(store_.AcquireGradients(context_, kTied), kTied, step, micro_batch, 0);
    }
    store_.ReleaseGradients(kTied, is_last);
    AddGradient(store_.exact_gradients(), 0, step, micro_batch, 0);
    store_.ReleaseGradients(0, is_last);
  }

  // The sums over ranks and micro-batches of what this rank owns; then clears them.
  void FinishAndCheck(int64_t step, int64_t micro_batches) {
    store_.FinishGradients(context_);
    T* const gradients = store_.gradients().view().template as<T>();
    for (int unit = 0; unit < kUnits; ++unit) {
      const RowRange& range = store_.owned()[static_cast<size_t>(unit)];
      for (int64_t i = 0; i < range.count; ++i) {
        double expected = 0;
        for (int rank = 0; rank < axis_.size(); ++rank) {
          for (int64_t m = 0; m < micro_batches; ++m) {
            const int64_t element = range.from + i;
            if (unit != kTied || m % 2 == 0) expected += Gradient(rank, step, m, 0, element);
            if (unit == kTied) expected += Gradient(rank, step, m, 1, element);
          }
        }
        ASSERT_EQ(static_cast<double>(gradients[range.to + i]), expected)
            << "unit " << unit << ", element " << i << " of " << range.count << ", step " << step;
      }
    }
    std::fill_n(gradients, store_.num_owned(), T{0});
    store_.ClearGradients(context_);
  }

 private:
  ConstTensorView Acquire(int unit) { return store_.AcquireWeights(context_, unit); }

  void CheckWeights(ConstTensorView weights, int unit, int64_t step) const {
    const int64_t begin = unit_begin_[static_cast<size_t>(unit)];
    const int64_t size = unit_begin_[static_cast<size_t>(unit) + 1] - begin;
    ASSERT_EQ(weights.empty() ? 0 : weights.num_elements(), size) << "unit " << unit;
    for (int64_t i = 0; i < size; ++i) {
      ASSERT_EQ(static_cast<double>(weights.as<T>()[i]), Weight(step, begin + i))
          << "unit " << unit << ", element " << i << ", step " << step;
    }
  }

  void AddGradient(TensorView to, int unit, int64_t step, int64_t micro_batch, int use) const {
    if (to.empty()) return;
    const int64_t begin = unit_begin_[static_cast<size_t>(unit)];
    for (int64_t i = 0; i < to.num_elements(); ++i) {
      to.as<T>()[i] += static_cast<T>(Gradient(axis_.rank(), step, micro_batch, use, begin + i));
    }
  }

  const OpContext& context_;
  ParameterStore& store_;
  const AxisComm& axis_;
  std::vector<int64_t> unit_begin_;
};

TEST_F(Store, SumsGradientsAndHandsOutWeights) {
  const auto check = [&]<typename T>() {
    const OpContext context = Context(DTypeOf<T>::value);
    for (const ShardingStage stage : kStages) {
      SCOPED_TRACE(static_cast<int>(stage));
      ParameterStore store = Create(context, UnitBegin(comm_.size()), stage);
      EXPECT_EQ(store.is_sharded(), stage != ShardingStage::kNone && comm_.size() > 1);
      StoreRun<T> run(context, store, axis_);
      run.WriteWeights(0, /*is_rounded=*/false);
      for (int64_t step = 0; step < 4; ++step) {
        const int64_t micro_batches = 1 + step % 3;
        for (int64_t m = 0; m < micro_batches; ++m) {
          run.ForwardBackward(step, m, m + 1 == micro_batches);
        }
        run.FinishAndCheck(step, micro_batches);
        run.WriteWeights(step + 1, /*is_rounded=*/true);
      }
      ASSERT_TRUE(log_.status().ok()) << log_.status();
    }
  };
  check.operator()<double>();
  check.operator()<float>();
}

TEST_F(Store, RanksOwnEveryElementOnce) {
  for (const int ranks : {1, 2, 3, 8}) {
    const std::vector<int64_t> begin = UnitBegin(ranks);
    for (const ShardingStage stage : kStages) {
      std::vector<int> owners(static_cast<size_t>(begin.back()), 0);
      for (int rank = 0; rank < ranks; ++rank) {
        const std::vector<RowRange> owned = OwnedRanges(begin, stage, ranks, rank);
        ASSERT_EQ(owned.size(), static_cast<size_t>(kUnits));
        int64_t end = 0;
        for (size_t unit = 0; unit < owned.size(); ++unit) {
          // Dense in the owned buffers, and inside its unit.
          ASSERT_EQ(owned[unit].to, end);
          end += owned[unit].count;
          ASSERT_GE(owned[unit].from, begin[unit]);
          ASSERT_LE(owned[unit].from + owned[unit].count, begin[unit + 1]);
          for (int64_t i = 0; i < owned[unit].count; ++i) {
            ++owners[static_cast<size_t>(owned[unit].from + i)];
          }
        }
      }
      for (int64_t i = 0; i < begin.back(); ++i) {
        const bool is_shared = stage != ShardingStage::kNone && i >= begin[1];
        ASSERT_EQ(owners[static_cast<size_t>(i)], is_shared ? 1 : ranks) << i;
      }
    }
  }
}

TEST_F(Store, PrefetchBeginsTheGatherThatAcquireWaitsFor) {
  if (comm_.size() == 1) GTEST_SKIP() << "one rank gathers nothing";
  const OpContext context = Context(DType::kF64);
  ParameterStore store = Create(context, UnitBegin(comm_.size()), ShardingStage::kParameters);
  store.PublishWeights(context, false);
  log_.ClearVolumes();
  store.PrefetchWeights(context, 2);
  EXPECT_EQ(AllGathers(), 1);
  store.AcquireWeights(context, 2);
  EXPECT_EQ(AllGathers(), 1);
  // What is still there is not gathered again, until the weights change.
  store.ReleaseWeights(2);
  store.AcquireWeights(context, 2);
  store.ReleaseWeights(2);
  EXPECT_EQ(AllGathers(), 1);
  store.PublishWeights(context, false);
  store.AcquireWeights(context, 2);
  EXPECT_EQ(AllGathers(), 2);
  store.ReleaseWeights(2);
  // A unit that was prefetched is not thrown out by another one.
  store.PrefetchWeights(context, 4);
  store.AcquireWeights(context, 5);
  store.AcquireWeights(context, 4);
  EXPECT_EQ(AllGathers(), 4);
  store.ReleaseWeights(5);
  store.ReleaseWeights(4);
  // One without elements travels nowhere.
  store.PrefetchWeights(context, 3);
  store.AcquireWeights(context, 3);
  store.ReleaseWeights(3);
  EXPECT_EQ(AllGathers(), 4);
  EXPECT_TRUE(log_.status().ok()) << log_.status();
}

// Peaks of a run over equal units: what each stage is said to save.
TEST_F(Store, StagesTakeTheMemoryTheyPromise) {
  constexpr int64_t kMany = 12;
  const int64_t n = comm_.size(), unit_size = 1000 * n;
  const OpContext context = Context(DType::kF64);
  std::vector<int64_t> unit_begin = {0, 0};  // nothing exact
  for (int64_t unit = 0; unit < kMany; ++unit) unit_begin.push_back(unit_begin.back() + unit_size);
  const int64_t whole = kMany * unit_size * 8, part = whole / n, unit = unit_size * 8;
  for (const ShardingStage stage : kStages) {
    SCOPED_TRACE(static_cast<int>(stage));
    MemoryTracker tracker;
    ParameterStoreOptions options;
    options.stage = stage;
    options.data = &axis_;
    ParameterStore store = *ParameterStore::Create(context, unit_begin, options, tracker);
    store.PublishWeights(context, false);
    const auto last = static_cast<int>(kMany);
    for (int micro_batch = 0; micro_batch < 3; ++micro_batch) {
      for (int u = 1; u <= last; ++u) {
        store.AcquireWeights(context, u);
        if (u < last) store.PrefetchWeights(context, u + 1);
        store.ReleaseWeights(u);
      }
      for (int u = last; u >= 1; --u) {
        store.AcquireWeights(context, u);
        if (u > 1) store.PrefetchWeights(context, u - 1);
        store.AcquireGradients(context, u);
        store.ReleaseWeights(u);
        store.ReleaseGradients(u, micro_batch == 2);
      }
      store.ReleaseGradients(0, micro_batch == 2);
    }
    store.FinishGradients(context);
    const int64_t weights = tracker.peak(MemoryPurpose::kWeights);
    const int64_t gradients = tracker.peak(MemoryPurpose::kGradients);
    if (n == 1) {
      EXPECT_EQ(weights, whole);
      EXPECT_EQ(gradients, whole);
      continue;
    }
    switch (stage) {
      case ShardingStage::kNone:
        EXPECT_EQ(weights, whole);
        EXPECT_EQ(gradients, whole);
        break;
      case ShardingStage::kOptimizer:
        EXPECT_EQ(weights, part + whole);
        EXPECT_EQ(gradients, part + whole);
        break;
      case ShardingStage::kGradients:
        EXPECT_EQ(weights, part + whole);
        EXPECT_EQ(gradients, part + 2 * (unit + unit / n));
        break;
      case ShardingStage::kParameters:
        EXPECT_EQ(weights, part + 2 * unit);
        EXPECT_EQ(gradients, part + 2 * (unit + unit / n));
        break;
    }
  }
  EXPECT_TRUE(log_.status().ok()) << log_.status();
}

}  // namespace
}  // namespace evenkeel
