// The decode step of lightning attention against the CPU's op in float64: one token of each of a
// batch of sequences, and many in a row.
#include "attention/kernels/cuda/lightning_decode_cuda.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "attention/kernels/cuda/lightning_attention_cuda.h"
#include "attention/lightning_attention.h"
#include "tests/gpu/ops_cuda_fixture.h"

namespace evenkeel {
namespace {

struct Case {
  int64_t sequences;
  int heads, head_dim, value_dim;
  std::vector<float> slopes;
  int64_t tokens = 1;  // of every sequence, fed one by one

  int64_t state_size() const { return int64_t{heads} * head_dim * value_dim; }  // of a sequence
};

std::vector<float> RandomSlopes(int heads, uint64_t seed) {
  std::vector<float> slopes = RandomFloats(heads, seed);
  for (float& slope : slopes) slope = std::exp2(2.0f * slope - 4.0f);
  return slopes;
}

// Rows of all sequences' tokens, sequence after sequence; a step takes those `tokens` apart.
struct Inputs {
  Bf16Matrix q, k, v;
  std::vector<float> states;

  Inputs(const Case& c, uint64_t seed) {
    const int64_t rows = c.sequences * c.tokens, qk = int64_t{c.heads} * c.head_dim,
                  ve = int64_t{c.heads} * c.value_dim;
    q = Bf16Matrix::Random(rows, qk, qk + 8, seed);
    k = Bf16Matrix::Random(rows, qk, qk + 24, seed + 1);
    v = Bf16Matrix::Random(rows, ve, ve + 16, seed + 2);
    states = RandomFloats(c.sequences * c.state_size(), seed + 3, 3.0);
  }
};

// Behind the states, to see whether anything is written there.
constexpr int64_t kGuard = 64;

std::vector<float> Guarded(std::vector<float> states) {
  states.resize(states.size() + kGuard, std::nanf(""));
  return states;
}

struct Results {
  Bf16Matrix out;
  std::vector<float> states;  // after the last token
};

// kApart and kNone (no state before the token, and none wanted) are of single tokens.
enum class States { kInPlace, kApart, kNone };

class LightningDecodeCudaTest : public GpuOpsTest {
 protected:
  // Launches a step for every token.
  static void Run(const Case& c, const Inputs& inputs, States how, Results& results) {
    const DeviceArray<Bits> q(inputs.q.data), k(inputs.k.data), v(inputs.v.data);
    results.out = Bf16Matrix::Poison(inputs.v.rows, inputs.v.columns, inputs.v.columns + 32);
    const DeviceArray<Bits> out(results.out.data);
    const DeviceArray<float> slopes(c.slopes), before(Guarded(inputs.states)),
        after(inputs.states.size() + kGuard);
    LightningDecodeParams p;
    p.num_sequences = c.sequences;
    p.num_heads = c.heads;
    p.head_dim = c.head_dim;
    p.value_dim = c.value_dim;
    p.slopes = slopes.data();
    if (how != States::kNone) {
      p.initial_state = before.data();
      p.final_state = how == States::kInPlace ? before.data() : after.data();
    }
    p.q_stride = c.tokens * inputs.q.stride;
    p.k_stride = c.tokens * inputs.k.stride;
    p.v_stride = c.tokens * inputs.v.stride;
    p.out_stride = c.tokens * results.out.stride;
    for (int64_t t = 0; t < c.tokens; ++t) {
      p.q = q.data() + t * inputs.q.stride;
      p.k = k.data() + t * inputs.k.stride;
      p.v = v.data() + t * inputs.v.stride;
      p.out = out.data() + t * results.out.stride;
      ASSERT_EQ(LaunchLightningDecode(p, nullptr), cudaSuccess);
    }
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    results.out = Downloaded(out, results.out);
    results.states = (how == States::kInPlace ? before : after).Download();
    if (how != States::kInPlace) {
      EXPECT_TRUE(SameBits(before.Download(), Guarded(inputs.states))) << "initial states written";
    }
    const auto unwritten =
        how == States::kNone ? results.states.begin() : results.states.end() - kGuard;
    EXPECT_TRUE(std::all_of(unwritten, results.states.end(), [](float x) { return std::isnan(x); }))
        << "written where no states are";
    results.states.resize(inputs.states.size());
  }

  // The CPU's op in float64 on whole sequences.
  void Twin(const Case& c, const Inputs& inputs, States how, std::vector<double>& out,
            std::vector<double>& states) {
    std::vector<double> q = inputs.q.Dense(), k = inputs.k.Dense(), v = inputs.v.Dense();
    const std::vector<double> slopes = ToDouble(c.slopes);
    std::vector<int64_t> cu_seqlens;
    for (int64_t b = 0; b <= c.sequences; ++b) cu_seqlens.push_back(b * c.tokens);
    const Shape keys{inputs.q.rows, c.heads, c.head_dim},
        values{inputs.v.rows, c.heads, c.value_dim},
        all{c.sequences, c.heads, c.head_dim, c.value_dim};
    out.resize(v.size());
    states = ToDouble(inputs.states);
    const TensorView state = F64(states, all);
    LightningAttentionForward(context_, cu_seqlens, slopes, F64(q, keys), F64(k, keys),
                              F64(v, values), how == States::kNone ? TensorView() : state,
                              F64(out, values), state);
  }

  // Of a step: an ulp of lambda (2^-23) and half of one for each of two roundings.
  static constexpr double kStateBound = 2.5e-7;
  // Of many, whose roundings have no preferred side.
  static double RandomWalk(int64_t steps) {
    return std::sqrt(static_cast<double>(steps)) * std::exp2(-24.0);
  }

  void Check(const Case& c, States how, uint64_t seed, double state_bound = kStateBound) {
    const std::string name = std::to_string(c.sequences) + " sequences of " +
                             std::to_string(c.tokens) + ", " + std::to_string(c.heads) +
                             " heads of " + std::to_string(c.head_dim) + "/" +
                             std::to_string(c.value_dim);
    SCOPED_TRACE(name);
    const Inputs inputs(c, seed);
    Results got, again;
    ASSERT_NO_FATAL_FAILURE(Run(c, inputs, how, got));
    ASSERT_NO_FATAL_FAILURE(Run(c, inputs, how, again));
    EXPECT_TRUE(SameBits(got.out.data, again.out.data));
    EXPECT_TRUE(SameBits(got.states, again.states));
    std::vector<double> out, states;
    Twin(c, inputs, how, out, states);
    ExpectRounded(got.out, out, "out of " + name);
    if (how != States::kNone) ExpectFloats(got.states, states, state_bound, "states of " + name);
  }
};

TEST_F(LightningDecodeCudaTest, EveryHeadSize) {
  uint64_t seed = 10;
  for (const int d : {8, 16, 24, 64, 96, 120, 128, 136, 192, 248, 256}) {
    for (const int e : {8, 24, 64, 96, 128, 200, 256}) {
      for (const int64_t sequences : {1, 9}) {
        Check({sequences, 3, d, e, RandomSlopes(3, seed)}, States::kInPlace, seed);
        seed += 10;
      }
    }
  }
}

TEST_F(LightningDecodeCudaTest, EveryBatch) {
  uint64_t seed = 2000;
  for (const int heads : {1, 7, 16}) {
    for (const int64_t sequences : {1, 2, 3, 8, 33}) {
      Check({sequences, heads, 128, 128, RandomSlopes(heads, seed)}, States::kInPlace, seed);
      seed += 10;
    }
  }
}

TEST_F(LightningDecodeCudaTest, RandomShapes) {
  std::mt19937 rng(3);
  for (uint64_t seed = 3000; seed < 3400; seed += 10) {
    const auto multiple = [&](int most) { return 8 * (1 + static_cast<int>(rng() % (most / 8))); };
    const int heads = 1 + static_cast<int>(rng() % 9);
    const Case c = {1 + static_cast<int64_t>(rng() % 12), heads, multiple(256), multiple(256),
                    RandomSlopes(heads, seed)};
    const States how[] = {States::kInPlace, States::kApart, States::kNone};
    Check(c, how[seed / 10 % 3], seed);
  }
}

TEST_F(LightningDecodeCudaTest, DecayFromNoneToTotal) {
  const std::vector<float> slopes = {0.0f, 8.4e-6f, 0.0039f, 0.6f, 0.8f, 4.0f, 60.0f, 200.0f};
  for (const States how : {States::kInPlace, States::kApart, States::kNone}) {
    Check({3, 8, 128, 128, slopes}, how, 4000);
    Check({3, 8, 72, 40, slopes}, how, 4010);
  }
}

// Strips are wide in a large batch and narrow in a small one, and sums are the same. Here nothing
// is left of them but their roundings, which tell one order from another.
TEST_F(LightningDecodeCudaTest, BitsDoNotDependOnTheBatch) {
  const Case c = {80, 5, 136, 120, std::vector<float>(5, 0.0f)};
  Inputs inputs(c, 5000);
  for (int64_t b = 0; b < c.sequences; ++b) {
    for (int64_t i = 0; i < inputs.q.columns; ++i) {
      inputs.q.at(b, i) = ToBits(1.0);
      inputs.k.at(b, i) = ToBits(0.0);
    }
  }
  for (int64_t state = 0; state < c.sequences * c.heads; ++state) {
    for (int64_t e = 0; e < c.value_dim; ++e) {
      float* column = inputs.states.data() + state * c.head_dim * c.value_dim + e;
      double sum = 0.0;
      for (int64_t d = 0; d + 1 < c.head_dim; ++d) sum += column[d * c.value_dim];
      column[(c.head_dim - 1) * c.value_dim] = static_cast<float>(-sum);
    }
  }
  Results all;
  ASSERT_NO_FATAL_FAILURE(Run(c, inputs, States::kInPlace, all));
  for (const int64_t b : {0, 41, 79}) {
    Case one = c;
    one.sequences = 1;
    Inputs alone(one, 1);
    const auto copy_row = [b](const Bf16Matrix& from, Bf16Matrix& to) {
      std::copy_n(from.data.begin() + b * from.stride, from.stride, to.data.begin());
    };
    copy_row(inputs.q, alone.q);
    copy_row(inputs.k, alone.k);
    copy_row(inputs.v, alone.v);
    std::copy_n(inputs.states.begin() + b * c.state_size(), c.state_size(), alone.states.begin());
    Results got;
    ASSERT_NO_FATAL_FAILURE(Run(one, alone, States::kInPlace, got));
    Bf16Matrix want = got.out;
    copy_row(all.out, want);
    EXPECT_TRUE(SameBits(got.out.data, want.data)) << b;
    EXPECT_TRUE(
        std::equal(got.states.begin(), got.states.end(), all.states.begin() + b * c.state_size()))
        << b;
  }
}

// What lies in other sequences and heads, and between rows, is never multiplied.
TEST_F(LightningDecodeCudaTest, SequencesAndHeadsBesideNaN) {
  const Case c = {3, 3, 64, 64, {0.1f, 0.2f, 0.3f}};
  const Inputs clean(c, 5100);
  Inputs inputs = clean;
  std::fill(inputs.states.begin(), inputs.states.end(), std::nanf(""));
  const int64_t size = 64 * 64, at = c.state_size() + size;  // sequence 1, head 1
  std::copy_n(clean.states.begin() + at, size, inputs.states.begin() + at);
  for (Bf16Matrix* m : {&inputs.q, &inputs.k, &inputs.v}) {
    const Bf16Matrix values = *m;
    std::fill(m->data.begin(), m->data.end(), kPoison);
    for (int64_t i = 64; i < 128; ++i) m->at(1, i) = values.at(1, i);
  }
  Results want, got;
  ASSERT_NO_FATAL_FAILURE(Run(c, clean, States::kInPlace, want));
  ASSERT_NO_FATAL_FAILURE(Run(c, inputs, States::kInPlace, got));
  for (int64_t i = 64; i < 128; ++i) EXPECT_EQ(got.out.at(1, i), want.out.at(1, i)) << i;
  EXPECT_TRUE(std::equal(want.states.begin() + at, want.states.begin() + at + size,
                         got.states.begin() + at));
}

TEST_F(LightningDecodeCudaTest, ManyStepsAreTheWholeSequence) {
  for (const int value_dim : {128, 64}) {
    const Case c = {3, 2, 128, value_dim, {0.05f, 0.7f}, 300};
    Check(c, States::kInPlace, 6000, RandomWalk(c.tokens));
    // And what the kernels for whole documents make of them.
    const Inputs inputs(c, 6000);
    Results steps;
    ASSERT_NO_FATAL_FAILURE(Run(c, inputs, States::kInPlace, steps));
    const std::vector<int64_t> cu_seqlens = {0, 300, 600, 900};
    const LightningPlan plan = PlanLightningAttention(cu_seqlens.data(), 3, 128);
    const DeviceArray<std::byte> plan_bytes(plan.bytes),
        workspace(LightningForwardWorkspaceBytes(plan, c.heads, c.head_dim, c.value_dim));
    const DeviceArray<float> slopes(c.slopes), initial(inputs.states),
        final_state(inputs.states.size());
    const DeviceArray<Bits> q(inputs.q.data), k(inputs.k.data), v(inputs.v.data),
        out(steps.out.data.size());
    LightningForwardParams p;
    p.plan = ViewOf(plan, plan_bytes.data());
    p.num_heads = c.heads;
    p.head_dim = c.head_dim;
    p.value_dim = c.value_dim;
    p.slopes = slopes.data();
    p.q = q.data();
    p.k = k.data();
    p.v = v.data();
    p.initial_state = initial.data();
    p.out = out.data();
    p.final_state = final_state.data();
    p.q_stride = inputs.q.stride;
    p.k_stride = inputs.k.stride;
    p.v_stride = inputs.v.stride;
    p.out_stride = steps.out.stride;
    p.workspace = workspace.data();
    ASSERT_EQ(LaunchLightningForward(p, nullptr), cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    const Bf16Matrix whole = Downloaded(out, steps.out);
    RelativeError error;
    for (int64_t r = 0; r < whole.rows; ++r) {
      for (int64_t i = 0; i < whole.columns; ++i) {
        error.Add(FromBits(steps.out.at(r, i)), FromBits(whole.at(r, i)));
      }
    }
    // That of lightning_attention_cuda_test.cc: those kernels round states and weights to bf16.
    constexpr double kBound = 6e-3;
    EXPECT_LE(error.value(), kBound);
    ExpectFloats(steps.states, ToDouble(final_state.Download()), kBound, "states");
  }
}

// With a decay that is rounded to float32 the states would be 1e-5 off or more.
TEST_F(LightningDecodeCudaTest, SlowDecayKeepsItsRate) {
  for (const float slope : {7e-6f, 1e-4f}) {
    const Case c = {2, 1, 32, 32, {slope}, 3000};
    Check(c, States::kInPlace, 7000, RandomWalk(c.tokens));
  }
}

TEST_F(LightningDecodeCudaTest, NothingToDoAndWhatItRefuses) {
  LightningDecodeParams p;
  p.num_heads = 2;
  p.head_dim = p.value_dim = 64;
  EXPECT_EQ(LaunchLightningDecode(p, nullptr), cudaSuccess);
  const auto refuses = [](LightningDecodeParams params) {
    params.num_sequences = 1;
    EXPECT_EQ(LaunchLightningDecode(params, nullptr), cudaErrorInvalidValue);
  };
  LightningDecodeParams wrong = p;
  wrong.head_dim = 12;
  refuses(wrong);
  wrong = p;
  wrong.value_dim = 264;
  refuses(wrong);
  wrong = p;
  wrong.v_stride = 132;
  refuses(wrong);
  wrong = p;
  wrong.num_heads = 0;
  refuses(wrong);
  // More blocks than a grid has.
  wrong = p;
  wrong.num_heads = 1 << 30;
  refuses(wrong);
}

// The op takes this kernel where every document has one token, with and without a plan of its own,
// and not where as many documents have as many tokens otherwise.
TEST_F(LightningDecodeCudaTest, TheOpDecodes) {
  const Case c = {4, 3, 64, 96, RandomSlopes(3, 8000)};
  const Inputs inputs(c, 8000);
  Results want;
  ASSERT_NO_FATAL_FAILURE(Run(c, inputs, States::kInPlace, want));
  const DeviceArray<Bits> q(inputs.q.data), k(inputs.k.data), v(inputs.v.data);
  const auto rows = [&](const DeviceArray<Bits>& array, const Bf16Matrix& m) {
    return OnDevice(array, DType::kBF16, {m.rows, m.stride})
        .Columns(0, m.columns)
        .SplitHeads(c.heads);
  };
  const Shape states{c.sequences, c.heads, c.head_dim, c.value_dim};
  const std::vector<double> slopes = ToDouble(c.slopes);
  const std::vector<int64_t> one_each = {0, 1, 2, 3, 4}, otherwise = {0, 0, 3, 3, 4};
  for (const std::vector<int64_t>& cu_seqlens : {one_each, otherwise}) {
    for (const bool planned : {false, true}) {
      const DeviceArray<Bits> out(want.out.data.size());
      const DeviceArray<float> state(inputs.states);
      OnGpu([&](const OpContext& context) {
        const ArenaScope scope(context.arena);
        const TensorView in_place = OnDevice(state, DType::kF32, states);
        const SequencePlan plan =
            planned ? PlanSequences(context, cu_seqlens, c.heads, c.value_dim) : cu_seqlens;
        LightningAttentionForward(context, plan, slopes, rows(q, inputs.q), rows(k, inputs.k),
                                  rows(v, inputs.v), in_place, rows(out, want.out), in_place);
      });
      const Bf16Matrix got = Downloaded(out, want.out);
      const std::vector<float> got_states = state.Download();
      if (cu_seqlens == one_each) {
        EXPECT_TRUE(SameBits(got.data, want.out.data)) << "planned " << planned;
        EXPECT_TRUE(SameBits(got_states, want.states)) << "planned " << planned;
        continue;
      }
      // Rounded inside to bf16, as in lightning_attention_cuda_test.cc.
      constexpr double kBound = 6e-3;
      std::vector<double> dense_q = inputs.q.Dense(), dense_k = inputs.k.Dense(),
                          dense_v = inputs.v.Dense(), twin_out(dense_v.size()),
                          twin_states = ToDouble(inputs.states);
      const Shape keys{4, c.heads, c.head_dim}, values{4, c.heads, c.value_dim};
      LightningAttentionForward(context_, cu_seqlens, slopes, F64(dense_q, keys),
                                F64(dense_k, keys), F64(dense_v, values), F64(twin_states, states),
                                F64(twin_out, values), F64(twin_states, states));
      ExpectFloats(got_states, twin_states, kBound, "states of other documents");
      RelativeError error;
      for (int64_t r = 0; r < got.rows; ++r) {
        for (int64_t i = 0; i < got.columns; ++i) {
          error.Add(FromBits(got.at(r, i)), twin_out[static_cast<size_t>(r * got.columns + i)]);
        }
      }
      EXPECT_LE(error.value(), kBound);
    }
  }
}

}  // namespace
}  // namespace evenkeel
