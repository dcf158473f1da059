// Sequences cut into pieces as context parallelism cuts them, computed on one GPU through the ops'
// own interface and put together again, against the whole on the CPU in float64.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "attention/lightning_attention.h"
#include "attention/lightning_state.h"
#include "attention/merge_state.h"
#include "attention/softmax_attention.h"
#include "runtime/base/philox.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/gpu.h"
#include "tests/gpu/device_array.h"

namespace evenkeel {
namespace {

// As of the kernels' own tests, and one more rounding where partial results are added.
constexpr double kBound = 1e-2;

class ContextParallelCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!HasGpu()) GTEST_SKIP() << "no GPU";
    gpu_ = *OpenGpu(0);
    arena_ = std::make_unique<Arena>(
        *Arena::CreateOnGpu(DeviceOf(*gpu_), int64_t{1} << 30, gpu_tracker_));
    context_ = std::make_unique<OpContext>(OpContext{pool_, *arena_, DType::kBF16, gpu_.get()});
  }
  void TearDown() override {
    context_.reset();
    arena_.reset();
    gpu_.reset();
  }

  TensorView Place(DType dtype, const Shape& shape) {
    return arena_->AllocateZero(dtype, shape, MemoryPurpose::kActivations);
  }

  // `values`, which bf16 holds exactly, on the GPU.
  TensorView Bf16(const std::vector<double>& values, const Shape& shape) {
    std::vector<Bits> bits;
    for (double x : values) bits.push_back(ToBits(x));
    const TensorView view = Place(DType::kBF16, shape);
    EXPECT_TRUE(
        CopyFromHost(*context_, ConstTensorView(bits.data(), DType::kBF16, shape), view).ok());
    EXPECT_TRUE(WaitForOps(*context_).ok());
    return view;
  }

  std::vector<double> Read(const ConstTensorView& view) {
    std::vector<double> values(static_cast<size_t>(view.num_elements()));
    const absl::Status status = ReadDoubles(*context_, view, absl::MakeSpan(values));
    EXPECT_TRUE(status.ok()) << status;
    return values;
  }

  MemoryTracker gpu_tracker_, cpu_tracker_;
  ThreadPool pool_{2};
  Arena cpu_arena_ = *Arena::Create(int64_t{1} << 28, cpu_tracker_);
  OpContext cpu_{pool_, cpu_arena_, DType::kF64};
  std::shared_ptr<CudaOps> gpu_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<OpContext> context_;
};

std::vector<double> RandomValues(const Shape& shape, uint64_t stream) {
  const Philox random(7, stream);
  std::vector<double> values;
  for (int64_t i = 0; i < shape.num_elements(); ++i) {
    values.push_back(FromBits(ToBits(random.Normal(static_cast<uint64_t>(i)))));
  }
  return values;
}

TensorView F64View(std::vector<double>& x, const Shape& shape) {
  x.resize(static_cast<size_t>(shape.num_elements()));
  return TensorView(x.data(), DType::kF64, shape);
}

void ExpectClose(const std::vector<double>& got, const std::vector<double>& want,
                 const char* what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  RelativeError error;
  for (size_t i = 0; i < got.size(); ++i) error.Add(got[i], want[i]);
  EXPECT_LE(error.value(), kBound) << what;
}

std::vector<int64_t> RandomCuts(std::mt19937& random, int64_t length, int pieces) {
  std::vector<int64_t> cuts = {0, length};
  for (int i = 1; i < pieces; ++i) {
    cuts.push_back(std::uniform_int_distribution<int64_t>(0, length)(random));
  }
  std::sort(cuts.begin(), cuts.end());
  return cuts;
}

TEST_F(ContextParallelCudaTest, PiecesOfSoftmaxAttentionFoldToTheWhole) {
  std::mt19937 random(11);
  for (const int64_t size : {64, 128}) {
    for (const int64_t length : {int64_t{1}, int64_t{300}, int64_t{517}}) {
      SCOPED_TRACE(testing::Message() << length << " of " << size);
      const ArenaScope scope(*arena_);
      const Shape q_shape{length, 4, size}, k_shape{length, 2, size}, lse_shape{length, 4};
      std::vector<double> q = RandomValues(q_shape, 0), k = RandomValues(k_shape, 1),
                          v = RandomValues(k_shape, 2), dout = RandomValues(q_shape, 3);
      const double scale = 1 / std::sqrt(static_cast<double>(size));
      const std::vector<AttentionTask> document = {{0, length, 0, length}};
      std::vector<double> out, lse, dq, dk, dv;
      SoftmaxAttentionForward(cpu_, document, scale, F64View(q, q_shape), F64View(k, k_shape),
                              F64View(v, k_shape), F64View(out, q_shape), F64View(lse, lse_shape));
      SoftmaxAttentionBackward(cpu_, document, scale, F64View(q, q_shape), F64View(k, k_shape),
                               F64View(v, k_shape), F64View(out, q_shape), F64View(lse, lse_shape),
                               F64View(dout, q_shape), F64View(dq, q_shape), F64View(dk, k_shape),
                               F64View(dv, k_shape));

      const std::vector<int64_t> q_cuts = RandomCuts(random, length, 3);
      const std::vector<int64_t> k_cuts = RandomCuts(random, length, 4);
      std::vector<std::vector<AttentionTask>> lists;
      for (size_t c = 1; c < k_cuts.size(); ++c) {
        lists.emplace_back();
        for (size_t r = 1; r < q_cuts.size(); ++r) {
          const int64_t q_end = q_cuts[r], kv_end = std::min(k_cuts[c], q_end);
          if (kv_end <= k_cuts[c - 1]) continue;
          lists.back().push_back({q_cuts[r - 1], q_end - q_cuts[r - 1], k_cuts[c - 1],
                                  kv_end - k_cuts[c - 1], q_end - kv_end});
        }
      }
      const TensorView q_d = Bf16(q, q_shape), k_d = Bf16(k, k_shape), v_d = Bf16(v, k_shape),
                       dout_d = Bf16(dout, q_shape);
      const TensorView folded = Place(DType::kF32, q_shape),
                       folded_lse = Place(DType::kF32, lse_shape),
                       part = Place(DType::kBF16, q_shape),
                       part_lse = Place(DType::kF32, lse_shape),
                       rounded = Place(DType::kBF16, q_shape);
      SetIdentityState(*context_, folded, folded_lse);
      for (const auto& tasks : lists) {
        // Rows of no task keep lse = -infinity: whatever is in their part_out is left out.
        const TensorView unused = Place(DType::kF32, q_shape);
        SetIdentityState(*context_, unused, part_lse);
        SoftmaxAttentionForward(*context_, PlanTasks(*context_, tasks, {size}, /*backward=*/false),
                                scale, q_d, k_d, v_d, part, part_lse);
        MergeState(*context_, part, part_lse, folded, folded_lse);
      }
      Copy(*context_, folded, rounded);
      ExpectClose(Read(rounded), out, "out");
      ExpectClose(Read(folded_lse), lse, "lse");

      const TensorView dk_d = Place(DType::kF32, k_shape), dv_d = Place(DType::kF32, k_shape);
      std::vector<double> dq_sum(q.size(), 0.0);
      for (const auto& tasks : lists) {
        const TensorView dq_d = Place(DType::kBF16, q_shape);
        SoftmaxAttentionBackward(*context_, PlanTasks(*context_, tasks, {size}, /*backward=*/true),
                                 scale, q_d, k_d, v_d, rounded, folded_lse, dout_d, dq_d, dk_d,
                                 dv_d);
        const std::vector<double> part_dq = Read(dq_d);
        for (size_t i = 0; i < dq_sum.size(); ++i) dq_sum[i] += part_dq[i];
      }
      // One token's gradients of q and k are 0 but for rounding.
      if (length > 1) {
        ExpectClose(dq_sum, dq, "dq");
        ExpectClose(Read(dk_d), dk, "dk");
      }
      ExpectClose(Read(dv_d), dv, "dv");
    }
  }
}

TEST_F(ContextParallelCudaTest, PiecesOfLightningAttentionEqualTheWhole) {
  std::mt19937 random(13);
  const std::vector<double> slopes = {0.7, 0.02, 0.0};
  constexpr int64_t kHeads = 3, kRanks = 3;
  const auto check = [&](const std::vector<int64_t>& cu_seqlens, int64_t d, int64_t e) {
    SCOPED_TRACE(testing::Message() << cu_seqlens.back() << " tokens, " << d << " " << e);
    const ArenaScope scope(*arena_);
    const int64_t tokens = cu_seqlens.back(),
                  documents = static_cast<int64_t>(cu_seqlens.size()) - 1;
    const Shape keys{tokens, kHeads, d}, values{tokens, kHeads, e}, states{documents, kHeads, d, e};
    std::vector<double> q = RandomValues(keys, 0), k = RandomValues(keys, 1),
                        v = RandomValues(values, 2), dout = RandomValues(values, 3);
    std::vector<double> out, dq, dk, dv;
    LightningAttentionForward(cpu_, cu_seqlens, slopes, F64View(q, keys), F64View(k, keys),
                              F64View(v, values), {}, F64View(out, values), {});
    LightningAttentionBackward(cpu_, cu_seqlens, slopes, F64View(q, keys), F64View(k, keys),
                               F64View(v, values), {}, F64View(dout, values), {}, F64View(dq, keys),
                               F64View(dk, keys), F64View(dv, values), {});

    std::vector<std::vector<int64_t>> cuts;  // of each document
    for (int64_t b = 0; b < documents; ++b) {
      cuts.push_back(RandomCuts(random, cu_seqlens[b + 1] - cu_seqlens[b], kRanks));
    }
    const auto gather = [&](const std::vector<double>& x, int64_t width, int64_t rank) {
      std::vector<double> rows;
      for (int64_t b = 0; b < documents; ++b) {
        rows.insert(rows.end(), x.begin() + (cu_seqlens[b] + cuts[b][rank]) * width,
                    x.begin() + (cu_seqlens[b] + cuts[b][rank + 1]) * width);
      }
      return rows;
    };
    struct Rank {
      std::vector<int64_t> cu_seqlens = {0};
      SequencePlan plan;
      TensorView q, k, v, dout;
    };
    std::vector<Rank> ranks(kRanks);
    // All-gathered: the states that every rank's tokens add, rank by rank.
    Shape gathered = states;
    gathered.dims[0] = kRanks * documents;
    const TensorView own = Place(DType::kF32, gathered),
                     own_gradients = Place(DType::kF32, gathered);
    for (int64_t r = 0; r < kRanks; ++r) {
      Rank& rank = ranks[r];
      for (int64_t b = 0; b < documents; ++b) {
        rank.cu_seqlens.push_back(rank.cu_seqlens.back() + cuts[b][r + 1] - cuts[b][r]);
      }
      const int64_t rows = rank.cu_seqlens.back();
      rank.plan = PlanSequences(*context_, rank.cu_seqlens, kHeads, e);
      rank.q = Bf16(gather(q, kHeads * d, r), {rows, kHeads, d});
      rank.k = Bf16(gather(k, kHeads * d, r), {rows, kHeads, d});
      rank.v = Bf16(gather(v, kHeads * e, r), {rows, kHeads, e});
      rank.dout = Bf16(gather(dout, kHeads * e, r), {rows, kHeads, e});
      const int64_t offset = r * states.num_elements();
      LightningStateForward(*context_, rank.plan, slopes, rank.k, rank.v,
                            TensorView(own.as<float>() + offset, DType::kF32, states, own.device));
      LightningStateBackward(
          *context_, rank.plan, slopes, rank.q, rank.dout,
          TensorView(own_gradients.as<float>() + offset, DType::kF32, states, own.device));
    }
    for (int64_t r = 0; r < kRanks; ++r) {
      SCOPED_TRACE(r);
      const Rank& rank = ranks[r];
      std::vector<StateTerm> before, after;
      for (int64_t b = 0; b < documents; ++b) {
        for (int64_t j = 0; j < r; ++j) {
          before.push_back({b, j * documents + b, cuts[b][r] - cuts[b][j + 1]});
        }
        for (int64_t j = r + 1; j < kRanks; ++j) {
          after.push_back({b, j * documents + b, cuts[b][j] - cuts[b][r + 1]});
        }
      }
      const TensorView initial = Place(DType::kF32, states), dfinal = Place(DType::kF32, states);
      CombineStates(*context_, slopes, before, own, initial);
      CombineStates(*context_, slopes, after, own_gradients, dfinal);
      const int64_t rows = rank.cu_seqlens.back();
      if (rows == 0) continue;
      const TensorView out_d = Place(DType::kBF16, {rows, kHeads, e}),
                       dq_d = Place(DType::kBF16, {rows, kHeads, d}),
                       dk_d = Place(DType::kBF16, {rows, kHeads, d}),
                       dv_d = Place(DType::kBF16, {rows, kHeads, e});
      LightningAttentionForward(*context_, rank.plan, slopes, rank.q, rank.k, rank.v, initial,
                                out_d, {});
      LightningAttentionBackwardQuery(*context_, rank.plan, slopes, rank.k, rank.v, initial,
                                      rank.dout, dq_d);
      LightningAttentionBackwardKeyValue(*context_, rank.plan, slopes, rank.q, rank.k, rank.v,
                                         rank.dout, dfinal, dk_d, dv_d, {});
      ExpectClose(Read(out_d), gather(out, kHeads * e, r), "out");
      ExpectClose(Read(dq_d), gather(dq, kHeads * d, r), "dq");
      ExpectClose(Read(dk_d), gather(dk, kHeads * d, r), "dk");
      ExpectClose(Read(dv_d), gather(dv, kHeads * e, r), "dv");
    }
  };
  check({0, 700}, 64, 64);
  check({0, 1, 333, 333, 900}, 128, 128);
  check({0, 260, 270}, 128, 64);
}

}  // namespace
}  // namespace evenkeel
