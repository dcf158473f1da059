// Sums of tensors, copies of rows, and sums of rows.
#include "runtime/ops/copy_rows.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/sum_rows.h"
#include "tests/gpu/ops_cuda_fixture.h"

namespace evenkeel {
namespace {

class RowsCudaTest : public GpuOpsTest {};

struct Size {
  int64_t rows, columns, width, begin;  // columns [begin, begin + columns) of rows of `width`
};

// Dense and strided, aligned and not, with whole and partial units of 8 elements.
const Size kSizes[] = {{1, 8, 8, 0},    {37, 704, 712, 8},     {5, 2048, 2048, 0},
                       {0, 64, 72, 0},  {9, 131, 133, 1},      {3, 1, 1, 0},
                       {6, 64, 68, 4},  {1000, 24, 40, 16},    {70, 61, 72, 8},
                       {33, 61, 61, 0}, {1, 100003, 100003, 0}};

// y = a + b within the columns of `size`; what lies beside them stays y's.
template <typename A, typename B, typename Sum>
std::vector<A> Expected(const Size& size, const std::vector<A>& a, const std::vector<B>& b,
                        std::vector<A> y, const Sum& sum) {
  for (int64_t r = 0; r < size.rows; ++r) {
    for (int64_t c = size.begin; c < size.begin + size.columns; ++c) {
      const auto i = static_cast<size_t>(r * size.width + c);
      y[i] = sum(a[i], b[i]);
    }
  }
  return y;
}

template <typename T>
TensorView Part(const DeviceArray<T>& array, const Size& size) {
  constexpr DType kType = sizeof(T) == 2 ? DType::kBF16 : DType::kF32;
  return OnDevice(array, kType, {size.rows, size.width})
      .Columns(size.begin, size.begin + size.columns);
}

TEST_F(RowsCudaTest, AddIsExactAndMayBeInPlace) {
  for (const Size& size : kSizes) {
    SCOPED_TRACE(testing::Message() << size.rows << " x " << size.columns << " of " << size.width);
    const auto half_a = Bf16Matrix::Random(size.rows, size.width, size.width, 1).data;
    const auto half_b = Bf16Matrix::Random(size.rows, size.width, size.width, 2).data;
    const auto wide_a = RandomFloats(size.rows * size.width, 3);
    const auto wide_b = RandomFloats(size.rows * size.width, 4);
    const auto check = [&](const auto& a, const auto& b, const auto& sum) {
      const DeviceArray a_d(a), b_d(b), y(a), in_a(a), in_b(b);
      OnGpu([&](const OpContext& context) {
        Add(context, Part(a_d, size), Part(b_d, size), Part(y, size));
        Add(context, Part(in_a, size), Part(b_d, size), Part(in_a, size));
        Add(context, Part(a_d, size), Part(in_b, size), Part(in_b, size));
      });
      EXPECT_TRUE(SameBits(y.Download(), Expected(size, a, b, a, sum)));
      EXPECT_TRUE(SameBits(in_a.Download(), Expected(size, a, b, a, sum)));
      EXPECT_TRUE(SameBits(in_b.Download(), Expected(size, a, b, b, sum)));
    };
    check(half_a, half_b, [](Bits x, Bits z) { return ToBits(FromBits(x) + FromBits(z)); });
    check(wide_a, wide_b, [](float x, float z) { return x + z; });
  }
}

TEST_F(RowsCudaTest, AddWideTakesActivationsAndWideNumbers) {
  for (const Size& size : kSizes) {
    SCOPED_TRACE(testing::Message() << size.rows << " x " << size.columns << " of " << size.width);
    const auto half = Bf16Matrix::Random(size.rows, size.width, size.width, 1).data;
    const auto wide = RandomFloats(size.rows * size.width, 3);
    const auto before = RandomFloats(size.rows * size.width, 4);
    const DeviceArray<Bits> half_d(half);
    const DeviceArray<float> wide_d(wide), half_sum(before), wide_sum(before);
    OnGpu([&](const OpContext& context) {
      AddWide(context, Part(half_d, size), Part(half_sum, size));
      AddWide(context, Part(wide_d, size), Part(wide_sum, size));
    });
    EXPECT_TRUE(
        SameBits(half_sum.Download(), Expected(size, before, half, before, [](float sum, Bits x) {
                   return sum + static_cast<float>(FromBits(x));
                 })));
    EXPECT_TRUE(
        SameBits(wide_sum.Download(),
                 Expected(size, before, wide, before, [](float sum, float x) { return sum + x; })));
  }
}

// Ranges whose lengths repeat `lengths`, in order in x with gaps, in the opposite order in y.
std::vector<RowRange> Ranges(const std::vector<int64_t>& lengths, int64_t count) {
  std::vector<RowRange> ranges;
  int64_t from = 1, to = 2;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t length = lengths[static_cast<size_t>(i) % lengths.size()];
    ranges.push_back({from, 0, length});
    from += length + i % 3;
  }
  for (auto range = ranges.rbegin(); range != ranges.rend(); ++range) {
    range->to = to;
    to += range->count + 1;
  }
  return ranges;
}

struct CopyCase {
  const char* name;
  std::vector<RowRange> ranges;
  int64_t columns, x_width, y_width, begin;
};

std::vector<CopyCase> CopyCases() {
  std::vector<int64_t> skewed(5000, 1);
  skewed[1234] = 20000;
  skewed[4999] = 9000;
  skewed[0] = 0;
  std::vector<int64_t> even(130, 61);  // more ranges than travel with the kernel, none longest
  return {{"single rows", Ranges({1}, 5000), 256, 256, 256, 0},
          {"single rows of a part of the columns", Ranges({1}, 3000), 264, 800, 272, 8},
          {"one range", {{3, 1, 1}}, 64, 64, 64, 0},
          {"no range", {}, 64, 64, 64, 0},
          {"empty ranges", {{0, 0, 0}, {5, 2, 0}}, 64, 64, 64, 0},
          {"a few long", Ranges({3000, 2001}, 5), 128, 128, 128, 0},
          {"a few long, strided", Ranges({3000, 2001}, 5), 128, 384, 136, 0},
          {"single rows and long ones", Ranges(skewed, 5000), 24, 32, 24, 0},
          {"many even", Ranges(even, 130), 1024, 1024, 1032, 0},
          {"many even, one row a part", Ranges({61}, 130), 4104, 4112, 4104, 0},
          {"all lengths", Ranges({0, 1, 2, 3, 40, 700, 5, 90}, 900), 40, 40, 48, 0},
          {"wide rows", Ranges({1, 2}, 9), 60000, 60000, 60008, 0},
          {"4 bytes", Ranges({1, 0, 300}, 200), 30, 34, 30, 2},
          {"2 bytes", Ranges({1, 0, 300}, 200), 37, 41, 37, 1},
          {"one element", Ranges({1, 17, 500}, 100), 1, 1, 1, 0},
          {"one strided element", Ranges({1, 17, 500}, 100), 1, 3, 1, 1}};
}

TEST_F(RowsCudaTest, CopiesWhatTheRangesNameAndNothingElse) {
  for (const CopyCase& c : CopyCases()) {
    SCOPED_TRACE(c.name);
    int64_t x_rows = 6, y_rows = 6;
    for (const RowRange& range : c.ranges) {
      x_rows = std::max(x_rows, range.from + range.count);
      y_rows = std::max(y_rows, range.to + range.count);
    }
    std::vector<Bits> x(static_cast<size_t>(x_rows * c.x_width));
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<Bits>(i * 40503 + i / 65536);
    const std::vector<Bits> before(static_cast<size_t>(y_rows * c.y_width), kPoison);
    std::vector<Bits> want = before;
    const auto columns_of = [&](auto* data, int64_t rows, int64_t width, int64_t begin,
                                Device device) {
      return TensorView(data, DType::kBF16, {rows, width}, device)
          .Columns(begin, begin + c.columns);
    };
    CopyRowRanges(context_, c.ranges,
                  columns_of(x.data(), x_rows, c.x_width, c.begin, Device::kCpu),
                  columns_of(want.data(), y_rows, c.y_width, 0, Device::kCpu));
    const DeviceArray<Bits> x_d(x), y(before), again(before);
    OnGpu([&](const OpContext& context) {
      const auto from = columns_of(x_d.data(), x_rows, c.x_width, c.begin, Device::kCuda);
      CopyRowRanges(context, c.ranges, from,
                    columns_of(y.data(), y_rows, c.y_width, 0, Device::kCuda));
      const ArenaScope scope(context.arena);
      const RowRanges mirrored = Mirror(context, RowRanges(c.ranges));
      CopyRowRanges(context, mirrored, from,
                    columns_of(again.data(), y_rows, c.y_width, 0, Device::kCuda));
    });
    EXPECT_TRUE(SameBits(y.Download(), want));
    EXPECT_TRUE(SameBits(again.Download(), want)) << "mirrored ranges";
  }
}

TEST_F(RowsCudaTest, CopiesFloats) {
  const std::vector<RowRange> ranges = Ranges({1, 4, 80}, 60);
  for (const int64_t columns : {3, 33, 64}) {
    const int64_t rows = 2000;
    const std::vector<float> x = RandomFloats(rows * columns, 1);
    std::vector<float> want = RandomFloats(rows * columns, 2);
    const DeviceArray<float> x_d(x), y(want);
    const Shape shape = {rows, columns};
    CopyRowRanges(context_, ranges, ConstTensorView(x.data(), DType::kF32, shape),
                  TensorView(want.data(), DType::kF32, shape));
    OnGpu([&](const OpContext& context) {
      CopyRowRanges(context, ranges, OnDevice(x_d, DType::kF32, shape),
                    OnDevice(y, DType::kF32, shape));
    });
    EXPECT_TRUE(SameBits(y.Download(), want)) << columns;
  }
}

struct SumCase {
  const char* name;
  std::vector<RowSegment> segments;
  std::vector<int64_t> terms;
  int64_t columns, x_width, y_width, begin;
};

// Segments whose lengths and numbers of terms repeat those given, in opposite order in y with gaps,
// and terms scattered over `x_rows` rows.
SumCase Sums(const char* name, const std::vector<int64_t>& lengths,
             const std::vector<int64_t>& num_terms, int64_t count, int64_t x_rows, int64_t columns,
             int64_t x_width, int64_t y_width, int64_t begin) {
  SumCase c{name, {}, {}, columns, x_width, y_width, begin};
  int64_t to = 1, drawn = 5;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t length = lengths[static_cast<size_t>(i) % lengths.size()];
    const int64_t terms = num_terms[static_cast<size_t>(i) % num_terms.size()];
    c.segments.push_back({0, length, static_cast<int64_t>(c.terms.size()), terms});
    for (int64_t t = 0; t < terms; ++t) {
      drawn = (drawn * 40503 + 12345) % 1000003;
      c.terms.push_back(drawn % (x_rows - length + 1));
    }
  }
  for (auto segment = c.segments.rbegin(); segment != c.segments.rend(); ++segment) {
    segment->to = to;
    to += segment->count + segment->count % 2;
  }
  return c;
}

std::vector<SumCase> SumCases() {
  std::vector<int64_t> skewed(3000, 1);
  skewed[1234] = 9000;
  skewed[2999] = 4000;
  skewed[0] = 0;
  return {Sums("single rows", {1}, {0, 1, 2, 3}, 5000, 900, 256, 256, 256, 0),
          Sums("a part of the columns", {1, 2}, {3, 1}, 3000, 700, 264, 800, 272, 8),
          Sums("one row", {1}, {4}, 1, 9, 64, 64, 64, 0),
          Sums("no segment", {1}, {1}, 0, 9, 64, 64, 64, 0),
          Sums("no term", {3, 0}, {0}, 7, 9, 64, 64, 72, 0),
          Sums("a few long", {3000, 2001}, {1, 8, 3}, 5, 5000, 128, 128, 128, 0),
          Sums("a few long, strided", {3000, 2001}, {2, 5}, 5, 4000, 128, 384, 136, 128),
          Sums("single rows and long ones", skewed, {2, 7, 1, 0}, 3000, 9100, 24, 32, 24, 0),
          Sums("many even", {61}, {3}, 130, 500, 1024, 1024, 1032, 0),
          Sums("all lengths", {0, 1, 2, 3, 40, 700, 5, 90}, {1, 2, 6}, 900, 800, 40, 40, 48, 0),
          Sums("more terms than lanes", {2, 9}, {70, 33, 32, 31}, 40, 60, 96, 96, 96, 0),
          Sums("wide rows", {1, 2}, {2, 3}, 9, 12, 60000, 60000, 60008, 0),
          Sums("units of one in x", {1, 0, 300}, {1, 4}, 200, 400, 32, 37, 32, 3),
          Sums("units of one in y", {1, 0, 300}, {1, 4}, 200, 400, 32, 32, 33, 0),
          Sums("odd columns", {1, 17, 90}, {2, 0, 5}, 100, 99, 37, 40, 40, 0),
          Sums("one strided element", {1, 17, 500}, {3}, 100, 600, 1, 3, 1, 1)};
}

// Sums in float32 in the order of the terms, then rounded: the same bits as the device's.
template <typename X, typename Y>
std::vector<Y> ExpectedSums(const SumCase& c, const std::vector<X>& x, std::vector<Y> y) {
  const auto to_float = [](X v) {
    if constexpr (sizeof(X) == 2) return static_cast<float>(FromBits(v));
    if constexpr (sizeof(X) == 4) return v;
  };
  for (const RowSegment& s : c.segments) {
    for (int64_t i = 0; i < s.count; ++i) {
      for (int64_t j = 0; j < c.columns; ++j) {
        float sum = 0;
        for (int64_t t = 0; t < s.num_terms; ++t) {
          const int64_t row = c.terms[static_cast<size_t>(s.first_term + t)] + i;
          const float term = to_float(x[static_cast<size_t>(row * c.x_width + c.begin + j)]);
          sum = t == 0 ? term : sum + term;
        }
        Y& out = y[static_cast<size_t>((s.to + i) * c.y_width + j)];
        if constexpr (sizeof(Y) == 2) out = ToBits(static_cast<double>(sum));
        if constexpr (sizeof(Y) == 4) out = sum;
      }
    }
  }
  return y;
}

TEST_F(RowsCudaTest, AddsWhatTheTermsNameAndNothingElse) {
  for (const SumCase& c : SumCases()) {
    SCOPED_TRACE(c.name);
    int64_t x_rows = 6, y_rows = 6;
    for (const RowSegment& s : c.segments) {
      y_rows = std::max(y_rows, s.to + s.count + 1);
      for (int64_t t = 0; t < s.num_terms; ++t) {
        x_rows = std::max(x_rows, c.terms[static_cast<size_t>(s.first_term + t)] + s.count);
      }
    }
    const auto check = [&](const auto& x, const auto& before) {
      using X = typename std::decay_t<decltype(x)>::value_type;
      using Y = typename std::decay_t<decltype(before)>::value_type;
      const auto want = ExpectedSums(c, x, before);
      const DeviceArray<X> x_d(x);
      const DeviceArray<Y> y(before), again(before);
      const auto y_view = [&](const DeviceArray<Y>& array) {
        return OnDevice(array, sizeof(Y) == 2 ? DType::kBF16 : DType::kF32, {y_rows, c.y_width})
            .Columns(0, c.columns);
      };
      OnGpu([&](const OpContext& context) {
        const ConstTensorView x_view =
            OnDevice(x_d, sizeof(X) == 2 ? DType::kBF16 : DType::kF32, {x_rows, c.x_width})
                .Columns(c.begin, c.begin + c.columns);
        SumRowRanges(context, c.segments, c.terms, x_view, y_view(y));
        const ArenaScope scope(context.arena);
        const RowSegments segments = Mirror(context, RowSegments(c.segments));
        const Positions terms = Mirror(context, Positions(c.terms));
        SumRowRanges(context, segments, terms, x_view, y_view(again));
      });
      EXPECT_TRUE(SameBits(y.Download(), want)) << sizeof(X) << " to " << sizeof(Y) << " bytes";
      EXPECT_TRUE(SameBits(again.Download(), want)) << "mirrored lists";
    };
    const auto half_x = Bf16Matrix::Random(x_rows, c.x_width, c.x_width, 1).data;
    const auto float_x = RandomFloats(x_rows * c.x_width, 2);
    const std::vector<Bits> half_y(static_cast<size_t>(y_rows * c.y_width), kPoison);
    const auto float_y = RandomFloats(y_rows * c.y_width, 3);
    check(half_x, half_y);
    check(half_x, float_y);
    check(float_x, half_y);
    check(float_x, float_y);
  }
}

}  // namespace
}  // namespace evenkeel
