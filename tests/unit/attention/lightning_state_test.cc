#include "attention/lightning_state.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/unit/attention/lightning_reference.h"

namespace evenkeel {
namespace {

const double kInfinity = std::numeric_limits<double>::infinity();

template <typename T>
struct Context {
  explicit Context(int threads) : pool(threads) {}

  MemoryTracker tracker;
  Arena arena = Arena::Create(int64_t{1} << 30, tracker).value();
  ThreadPool pool;
  OpContext context{pool, arena, DTypeOf<T>::value};
};

template <typename T>
ConstTensorView In(const std::vector<T>& x, Shape shape) {
  EK_CHECK(static_cast<int64_t>(x.size()) == shape.num_elements());
  return ConstTensorView(x.data(), DTypeOf<T>::value, shape);
}

template <typename T>
TensorView Out(std::vector<T>& x, Shape shape) {
  x.assign(static_cast<size_t>(shape.num_elements()), std::numeric_limits<T>::quiet_NaN());
  return TensorView(x.data(), DTypeOf<T>::value, shape);
}

template <typename T>
Shape KeyShape(const LightningProblem<T>& p) {
  return {p.num_tokens(), p.num_heads(), p.key_size};
}
template <typename T>
Shape ValueShape(const LightningProblem<T>& p) {
  return {p.num_tokens(), p.num_heads(), p.value_size};
}
template <typename T>
Shape StateShape(const LightningProblem<T>& p) {
  return {p.num_documents(), p.num_heads(), p.key_size, p.value_size};
}

template <typename T>
struct States {
  std::vector<T> final_state, dinitial_state;
};

// What the tokens alone add to the states at either end.
template <typename T>
States<T> RunStates(const LightningProblem<T>& p, int threads = 1) {
  Context<T> test(threads);
  States<T> r;
  LightningStateForward(test.context, p.cu_seqlens, p.slopes, In(p.k, KeyShape(p)),
                        In(p.v, ValueShape(p)), Out(r.final_state, StateShape(p)));
  LightningStateBackward(test.context, p.cu_seqlens, p.slopes, In(p.q, KeyShape(p)),
                         In(p.dout, ValueShape(p)), Out(r.dinitial_state, StateShape(p)));
  EXPECT_EQ(test.arena.bytes_in_use(), 0);
  return r;
}

std::vector<double> AllSlopes() {
  return {0.84, 0.25, 8.4e-6, 0.0, 30.0};
}

TEST(LightningStateTest, EqualsTheRecurrenceFromZero) {
  std::vector<int64_t> lengths = {1, 2, 4, 5, 31, 32, 33, 64, 97, 129, 300};
  for (const auto& size : {std::pair<int64_t, int64_t>(32, 32), {17, 19}, {3, 70}, {128, 1}}) {
    for (int64_t n : lengths) {
      SCOPED_TRACE(absl::StrCat("n ", n, " D ", size.first, " E ", size.second));
      const auto p = MakeLightningProblem<double>({0, 0, n, n + 3, n + 3}, AllSlopes(), size.first,
                                                  size.second, false, 31);
      const auto want = LightningReference(p);
      const auto got = RunStates(p, 2);
      EXPECT_LT(RelativeError(got.final_state, want.final_state), 1e-12);
      EXPECT_LT(RelativeError(got.dinitial_state, want.dinitial_state), 1e-12);
      // The sequences without tokens, the first and the last.
      const auto state = static_cast<int64_t>(got.final_state.size()) / 4;
      for (int64_t i = 0; i < state; ++i) {
        for (int64_t at : {i, 3 * state + i}) {
          ASSERT_EQ(got.final_state[static_cast<size_t>(at)], 0);
          ASSERT_EQ(got.dinitial_state[static_cast<size_t>(at)], 0);
        }
      }
    }
  }
}

TEST(LightningStateTest, ThreadsDoNotChangeTheBits) {
  for (const std::vector<int64_t>& cu_seqlens :
       {std::vector<int64_t>{0, 3001}, std::vector<int64_t>{0, 2000, 2300, 2303, 2310}}) {
    const auto p = MakeLightningProblem<float>(cu_seqlens, {0.01, 0.6}, 24, 40, false, 32);
    const auto one = RunStates(p, 1);
    for (int threads : {2, 3}) {
      const auto many = RunStates(p, threads);
      EXPECT_EQ(many.final_state, one.final_state) << threads;
      EXPECT_EQ(many.dinitial_state, one.dinitial_state) << threads;
    }
  }
}

TEST(LightningStateTest, StridedRows) {
  const auto p = MakeLightningProblem<double>({0, 40, 75}, {0.1, 0.02}, 12, 20, false, 33);
  // k and v side by side in one matrix, and NaN after them.
  const int64_t width = 2 * (12 + 20) + 5, rows = p.num_tokens();
  const auto joined = [&](const std::vector<double>& keys, const std::vector<double>& values) {
    std::vector<double> x(static_cast<size_t>(rows * width),
                          std::numeric_limits<double>::quiet_NaN());
    for (int64_t t = 0; t < rows; ++t) {
      std::copy_n(keys.begin() + t * 24, 24, x.begin() + t * width);
      std::copy_n(values.begin() + t * 40, 40, x.begin() + t * width + 24);
    }
    return x;
  };
  const auto part = [&](const std::vector<double>& x, int64_t begin, int64_t end) {
    return In(x, {rows, width}).Columns(begin, end).SplitHeads(2);
  };
  const auto kv = joined(p.k, p.v), qdo = joined(p.q, p.dout);
  Context<double> test(2);
  States<double> got;
  LightningStateForward(test.context, p.cu_seqlens, p.slopes, part(kv, 0, 24), part(kv, 24, 64),
                        Out(got.final_state, StateShape(p)));
  LightningStateBackward(test.context, p.cu_seqlens, p.slopes, part(qdo, 0, 24), part(qdo, 24, 64),
                         Out(got.dinitial_state, StateShape(p)));
  const auto dense = RunStates(p);
  EXPECT_EQ(got.final_state, dense.final_state);
  EXPECT_EQ(got.dinitial_state, dense.dinitial_state);
}

TEST(CombineStatesTest, AddsDecayedSourcesInOrder) {
  const std::vector<double> slopes = {0.0, 0.3, 500.0, kInfinity};
  const Shape source_shape = {3, 4, 2, 3}, target_shape = {4, 4, 2, 3};
  const auto sources = NormalValues<double>(source_shape.num_elements(), 34, 0);
  const std::vector<StateTerm> terms = {{0, 2, 5}, {0, 0, 0}, {2, 1, 1},
                                        {2, 1, 1}, {2, 2, 0}, {3, 0, int64_t{1} << 40}};
  std::vector<double> targets;
  Context<double> test(3);
  CombineStates(test.context, slopes, terms, In(sources, source_shape), Out(targets, target_shape));
  std::vector<double> want(targets.size(), 0.0);
  for (const StateTerm& term : terms) {
    for (int64_t h = 0; h < 4; ++h) {
      const double distance = static_cast<double>(term.distance);
      const double factor =
          term.distance == 0 ? 1.0 : std::exp(-slopes[static_cast<size_t>(h)] * distance);
      for (int64_t i = 0; i < 6; ++i) {
        want[static_cast<size_t>((term.target * 4 + h) * 6 + i)] +=
            factor * sources[static_cast<size_t>((term.source * 4 + h) * 6 + i)];
      }
    }
  }
  EXPECT_LT(RelativeError(targets, want), 1e-15);
  for (size_t i = 24; i < 48; ++i) EXPECT_EQ(targets[i], 0);  // target 1 has no term
}

TEST(CombineStatesTest, NoTermsAndNoTargets) {
  Context<float> test(2);
  const std::vector<double> slopes = {0.5};
  std::vector<float> targets, none;
  const std::vector<float> sources;
  const ConstTensorView no_sources(nullptr, DType::kF32, {0, 1, 2, 2});
  CombineStates(test.context, slopes, {}, no_sources, Out(targets, {2, 1, 2, 2}));
  EXPECT_EQ(targets, std::vector<float>(8, 0.0f));
  CombineStates(test.context, slopes, {}, no_sources, Out(none, {0, 1, 2, 2}));
}

TEST(CombineStatesDeathTest, TermsMustBeSortedAndInside) {
  const std::vector<float> sources(4, 1.0f);
  std::vector<float> targets;
  const auto run = [&](std::vector<StateTerm> terms) {
    Context<float> test(1);
    const std::vector<double> slopes = {0.5};
    CombineStates(test.context, slopes, terms, In(sources, {1, 1, 2, 2}),
                  Out(targets, {2, 1, 2, 2}));
  };
  EXPECT_DEATH(run({{1, 0, 0}, {0, 0, 0}}), "not sorted");
  EXPECT_DEATH(run({{0, 1, 0}}), "term 0");
  EXPECT_DEATH(run({{0, 0, -1}}), "term 0");
}

// The rows of documents' pieces, one after the other: rows of [T, H, size], `row` elements each.
template <typename T>
std::vector<T> GatherRows(const std::vector<T>& x, int64_t row,
                          const std::vector<std::pair<int64_t, int64_t>>& pieces) {
  std::vector<T> gathered;
  for (const auto& [begin, end] : pieces) {
    gathered.insert(gathered.end(), x.begin() + begin * row, x.begin() + end * row);
  }
  return gathered;
}

// What one pretended rank holds: a piece, maybe empty, of every document.
struct Rank {
  std::vector<std::pair<int64_t, int64_t>> pieces;  // rows of the whole batch
  LightningProblem<double> problem;
};

std::vector<Rank> CutOverRanks(const LightningProblem<double>& p, int64_t num_ranks,
                               std::mt19937& random) {
  std::vector<Rank> ranks(static_cast<size_t>(num_ranks));
  for (size_t b = 0; b + 1 < p.cu_seqlens.size(); ++b) {
    std::vector<int64_t> cuts = {p.cu_seqlens[b], p.cu_seqlens[b + 1]};
    for (int64_t r = 1; r < num_ranks; ++r) {
      cuts.push_back(
          std::uniform_int_distribution<int64_t>(p.cu_seqlens[b], p.cu_seqlens[b + 1])(random));
    }
    std::sort(cuts.begin(), cuts.end());
    for (size_t r = 0; r < ranks.size(); ++r) ranks[r].pieces.push_back({cuts[r], cuts[r + 1]});
  }
  const int64_t key_row = p.num_heads() * p.key_size, value_row = p.num_heads() * p.value_size;
  for (Rank& rank : ranks) {
    LightningProblem<double>& part = rank.problem;
    part.cu_seqlens = {0};
    for (const auto& [begin, end] : rank.pieces) {
      part.cu_seqlens.push_back(part.cu_seqlens.back() + end - begin);
    }
    part.slopes = p.slopes;
    part.key_size = p.key_size;
    part.value_size = p.value_size;
    part.q = GatherRows(p.q, key_row, rank.pieces);
    part.k = GatherRows(p.k, key_row, rank.pieces);
    part.v = GatherRows(p.v, value_row, rank.pieces);
    part.dout = GatherRows(p.dout, value_row, rank.pieces);
  }
  return ranks;
}

// Sequence parallelism played on one rank: own states, one exchange, combined states, outputs; and
// the same from the other end for gradients. Everything equals the recurrence over the whole.
void ExpectPiecesEqualTheWhole(const LightningProblem<double>& p, int64_t num_ranks,
                               std::mt19937& random) {
  Context<double> test(2);
  const auto want = LightningReference(p);
  std::vector<Rank> ranks = CutOverRanks(p, num_ranks, random);
  const int64_t num_documents = p.num_documents();
  // All-gathered: rank by rank, then the states at the ends of the whole.
  std::vector<double> states, gradients;
  for (const Rank& rank : ranks) {
    const auto own = RunStates(rank.problem, 2);
    states.insert(states.end(), own.final_state.begin(), own.final_state.end());
    gradients.insert(gradients.end(), own.dinitial_state.begin(), own.dinitial_state.end());
  }
  states.insert(states.end(), p.initial_state.begin(), p.initial_state.end());
  gradients.insert(gradients.end(), p.dfinal_state.begin(), p.dfinal_state.end());
  const bool has_ends = !p.initial_state.empty();
  Shape gathered = StateShape(p);
  gathered.dims[0] = num_documents * (num_ranks + (has_ends ? 1 : 0));

  for (int64_t r = 0; r < num_ranks; ++r) {
    SCOPED_TRACE(absl::StrCat("rank ", r, " of ", num_ranks));
    std::vector<StateTerm> before, after;
    for (int64_t b = 0; b < num_documents; ++b) {
      const auto piece = [&](int64_t rank) {
        return ranks[static_cast<size_t>(rank)].pieces[static_cast<size_t>(b)];
      };
      const auto [begin, end] = piece(r);
      if (has_ends) {
        before.push_back(
            {b, num_ranks * num_documents + b, begin - p.cu_seqlens[static_cast<size_t>(b)]});
      }
      for (int64_t j = 0; j < r; ++j) {
        before.push_back({b, j * num_documents + b, begin - piece(j).second});
      }
      for (int64_t j = r + 1; j < num_ranks; ++j) {
        after.push_back({b, j * num_documents + b, piece(j).first - end});
      }
      if (has_ends) {
        after.push_back(
            {b, num_ranks * num_documents + b, p.cu_seqlens[static_cast<size_t>(b) + 1] - end});
      }
    }
    const Rank& rank = ranks[static_cast<size_t>(r)];
    const LightningProblem<double>& part = rank.problem;
    std::vector<double> initial, dfinal;
    CombineStates(test.context, p.slopes, before, In(states, gathered),
                  Out(initial, StateShape(p)));
    CombineStates(test.context, p.slopes, after, In(gradients, gathered),
                  Out(dfinal, StateShape(p)));

    LightningResult<double> got;
    const Shape keys = KeyShape(part), values = ValueShape(part), state = StateShape(part);
    const auto q = In(part.q, keys), k = In(part.k, keys), v = In(part.v, values),
               dout = In(part.dout, values);
    LightningAttentionForward(test.context, part.cu_seqlens, p.slopes, q, k, v, In(initial, state),
                              Out(got.out, values), Out(got.final_state, state));
    LightningAttentionBackwardQuery(test.context, part.cu_seqlens, p.slopes, k, v,
                                    In(initial, state), dout, Out(got.dq, keys));
    LightningAttentionBackwardKeyValue(test.context, part.cu_seqlens, p.slopes, q, k, v, dout,
                                       In(dfinal, state), Out(got.dk, keys), Out(got.dv, values),
                                       Out(got.dinitial_state, state));
    const int64_t key_row = p.num_heads() * p.key_size, value_row = p.num_heads() * p.value_size;
    constexpr double kBound = 1e-11;
    EXPECT_LT(RelativeError(got.out, GatherRows(want.out, value_row, rank.pieces)), kBound);
    EXPECT_LT(RelativeError(got.dq, GatherRows(want.dq, key_row, rank.pieces)), kBound);
    EXPECT_LT(RelativeError(got.dk, GatherRows(want.dk, key_row, rank.pieces)), kBound);
    EXPECT_LT(RelativeError(got.dv, GatherRows(want.dv, value_row, rank.pieces)), kBound);
    if (r == num_ranks - 1) {
      EXPECT_LT(RelativeError(got.final_state, want.final_state), kBound);
    }
    if (r == 0) {
      EXPECT_LT(RelativeError(got.dinitial_state, want.dinitial_state), kBound);
    }
  }
}

TEST(SequenceParallelTest, PiecesOverRanksEqualTheWhole) {
  std::mt19937 random(35);
  int round = 0;
  for (int64_t num_ranks : {1, 2, 3, 5, 8}) {
    for (const std::vector<int64_t>& cu_seqlens :
         {std::vector<int64_t>{0, 1}, std::vector<int64_t>{0, 211},
          std::vector<int64_t>{0, 0, 3, 150, 151, 151, 400}}) {
      const bool with_states = ++round % 2 == 0;
      SCOPED_TRACE(absl::StrCat(cu_seqlens.back(), " tokens, states ", with_states));
      const auto p = MakeLightningProblem<double>(cu_seqlens, AllSlopes(), 12, 20, with_states, 36);
      ExpectPiecesEqualTheWhole(p, num_ranks, random);
    }
  }
}

TEST(SequenceParallelTest, NoDecayAndTotalDecay) {
  std::mt19937 random(37);
  for (double slope : {0.0, 1000.0, kInfinity}) {
    SCOPED_TRACE(slope);
    ExpectPiecesEqualTheWhole(
        MakeLightningProblem<double>({0, 90, 133}, {slope, slope}, 8, 5, true, 38), 4, random);
  }
}

// The backward pass and its two parts give the same bits.
TEST(LightningBackwardPartsTest, TogetherAreTheWhole) {
  for (const bool with_states : {false, true}) {
    const auto p =
        MakeLightningProblem<double>({0, 70, 70, 73, 200}, AllSlopes(), 24, 10, with_states, 39);
    const auto whole = RunLightning(p, 2);
    Context<double> test(2);
    LightningResult<double> got;
    const Shape keys = KeyShape(p), values = ValueShape(p), state = StateShape(p);
    const auto states = [&](const std::vector<double>& x) {
      return x.empty() ? ConstTensorView() : In(x, state);
    };
    LightningAttentionBackwardQuery(test.context, p.cu_seqlens, p.slopes, In(p.k, keys),
                                    In(p.v, values), states(p.initial_state), In(p.dout, values),
                                    Out(got.dq, keys));
    LightningAttentionBackwardKeyValue(test.context, p.cu_seqlens, p.slopes, In(p.q, keys),
                                       In(p.k, keys), In(p.v, values), In(p.dout, values),
                                       states(p.dfinal_state), Out(got.dk, keys),
                                       Out(got.dv, values), Out(got.dinitial_state, state));
    EXPECT_EQ(got.dq, whole.dq);
    EXPECT_EQ(got.dk, whole.dk);
    EXPECT_EQ(got.dv, whole.dv);
    EXPECT_EQ(got.dinitial_state, whole.dinitial_state);
  }
}

}  // namespace
}  // namespace evenkeel
