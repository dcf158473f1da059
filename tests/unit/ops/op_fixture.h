// What the tests of the ops share: contexts with any number of threads, random data, strided views,
// and comparisons.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "runtime/base/philox.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// An OpContext with a pool and an arena of its own.
class OpRunner {
 public:
  explicit OpRunner(int num_threads, DType dtype = DType::kF64)
      : pool_(num_threads),
        arena_(*Arena::Create(int64_t{1} << 30, tracker_)),
        context_{pool_, arena_, dtype} {}
  ~OpRunner() { EXPECT_EQ(arena_.bytes_in_use(), 0) << "an op kept scratch memory"; }

  const OpContext& context() const { return context_; }

 private:
  MemoryTracker tracker_;
  ThreadPool pool_;
  Arena arena_;
  OpContext context_;
};

// n standard normal values.
template <typename T = double>
std::vector<T> RandomNormal(int64_t n, uint64_t seed, double scale = 1) {
  const Philox random(seed, 17);
  std::vector<T> values(static_cast<size_t>(n));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<T>(scale * random.Normal(i));
  return values;
}

inline std::vector<int32_t> RandomTokens(int64_t n, int32_t vocabulary, uint64_t seed) {
  const Philox random(seed, 18);
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<int32_t>(random.Bits(i) % static_cast<uint64_t>(vocabulary));
  }
  return tokens;
}

template <typename T>
TensorView ViewOf(std::vector<T>& data, Shape shape) {
  EXPECT_GE(static_cast<int64_t>(data.size()), shape.num_elements());
  return TensorView(data.data(), DTypeOf<T>::value, shape);
}

template <typename T>
ConstTensorView ViewOf(const std::vector<T>& data, Shape shape) {
  EXPECT_GE(static_cast<int64_t>(data.size()), shape.num_elements());
  return ConstTensorView(data.data(), DTypeOf<T>::value, shape);
}

// Columns [begin, end) of a dense [rows, columns] matrix: a view whose rows are strided.
template <typename Vector>
auto ColumnsOf(Vector& data, int64_t rows, int64_t columns, int64_t begin, int64_t end) {
  return ViewOf(data, {rows, columns}).Columns(begin, end);
}

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

inline double Dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// Largest |a - b| / (1 + |b|); infinity if a NaN is on one side only.
template <typename A, typename B>
double MaxError(const std::vector<A>& a, const std::vector<B>& b) {
  if (a.size() != b.size()) return HUGE_VAL;
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    if (std::isnan(x) && std::isnan(y)) continue;
    const double error = std::abs(x - y) / (1 + std::abs(y));
    worst = std::isnan(error) ? HUGE_VAL : std::max(worst, error);
  }
  return worst;
}

// run(context) returns an op's outputs as one vector: they must have the same bits on 1, 2 and 3
// threads, and when run again.
template <typename Run>
void ExpectSameOnAnyThreads(DType dtype, const Run& run) {
  OpRunner one(1, dtype);
  const auto expected = run(one.context());
  EXPECT_FALSE(expected.empty());
  for (int threads : {1, 2, 3}) {
    OpRunner several(threads, dtype);
    EXPECT_TRUE(SameBits(run(several.context()), expected)) << threads << " threads";
  }
}

}  // namespace evenkeel
