#include "attention/lightning_state.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention/kernels/cuda/attention_ops.h"
#include "attention/kernels/lightning_pass.h"
#include "attention/lightning_operands.h"

namespace evenkeel {
namespace {

using lightning::CheckedSizes;
using lightning::CheckState;
using lightning::LightningPass;
using lightning::Rows;
using lightning::RunLightningPass;
using lightning::Sizes;
using lightning::States;

Sizes CheckedStateSizes(const SequencePlan& plan, absl::Span<const double> slopes,
                        ConstTensorView keys, ConstTensorView values, ConstTensorView states) {
  const Sizes sizes = CheckedSizes(plan.cu_seqlens, slopes, keys, values);
  EK_CHECK(!states.empty() || sizes.states().num_elements() == 0) << "no place for the states";
  CheckState(states, sizes.states(), WideDType(keys.dtype));
  return sizes;
}

// Runs the sum of k_t v_t^T, decayed towards one end of each sequence.
void SumStates(const OpContext& context, const SequencePlan& plan, absl::Span<const double> slopes,
               const Sizes& sizes, bool reverse, ConstTensorView k, ConstTensorView v,
               TensorView states) {
  DispatchFloat(k.dtype, [&]<typename T>() {
    LightningPass<T> pass;
    pass.reverse = reverse;
    pass.num_heads = sizes.num_heads;
    pass.key_size = sizes.key_size;
    pass.value_size = sizes.value_size;
    pass.k = Rows<T>(k);
    pass.v = Rows<T>(v);
    pass.final_state = States<T>(states);
    RunLightningPass(context, plan.cu_seqlens, slopes, pass);
  });
}

}  // namespace

void LightningStateForward(const OpContext& context, const SequencePlan& plan,
                           absl::Span<const double> slopes, ConstTensorView k, ConstTensorView v,
                           TensorView final_state) {
  const Sizes sizes = CheckedStateSizes(plan, slopes, k, v, final_state);
  EK_TRACE_ON_CUDA(context, LightningStateForward, plan, slopes, k, v, final_state)
  SumStates(context, plan, slopes, sizes, /*reverse=*/false, k, v, final_state);
}

void LightningStateBackward(const OpContext& context, const SequencePlan& plan,
                            absl::Span<const double> slopes, ConstTensorView q,
                            ConstTensorView dout, TensorView dinitial_state) {
  const Sizes sizes = CheckedStateSizes(plan, slopes, q, dout, dinitial_state);
  EK_TRACE_ON_CUDA(context, LightningStateBackward, plan, slopes, q, dout, dinitial_state)
  SumStates(context, plan, slopes, sizes, /*reverse=*/true, q, dout, dinitial_state);
}

void CombineStates(const OpContext& context, absl::Span<const double> slopes,
                   absl::Span<const StateTerm> terms, ConstTensorView sources, TensorView targets) {
  EK_CHECK(sources.rank() == 4 && targets.rank() == 4 && sources.dtype == targets.dtype &&
           sources.is_dense() && targets.is_dense())
      << sources.shape.ToString() << " into " << targets.shape.ToString();
  for (int i = 1; i < 4; ++i) {
    EK_CHECK(sources.dim(i) == targets.dim(i))
        << sources.shape.ToString() << " into " << targets.shape.ToString();
  }
  const int64_t num_heads = targets.dim(1), size = targets.dim(2) * targets.dim(3);
  lightning::CheckSlopes(slopes, num_heads);
  for (size_t i = 0; i < terms.size(); ++i) {
    const StateTerm& term = terms[i];
    EK_CHECK(term.target >= 0 && term.target < targets.dim(0) && term.source >= 0 &&
             term.source < sources.dim(0) && term.distance >= 0)
        << "term " << i << ": " << term.source << " to " << term.target << " over "
        << term.distance;
    EK_CHECK(i == 0 || terms[i - 1].target <= term.target) << "terms are not sorted by target";
  }
  EK_TRACE_ON_CUDA(context, CombineStates, slopes, terms, sources, targets)
  DispatchFloat(targets.dtype, [&]<typename T>() {
    const T* source_data = sources.as<T>();
    T* target_data = targets.as<T>();
    context.pool.ParallelForEach(targets.dim(0) * num_heads, [&](int64_t item) {
      const int64_t target = item / num_heads, head = item % num_heads;
      T* to = target_data + item * size;
      std::fill_n(to, size, T{0});
      const auto first = std::lower_bound(
          terms.begin(), terms.end(), target,
          [](const StateTerm& term, int64_t value) { return term.target < value; });
      for (auto term = first; term != terms.end() && term->target == target; ++term) {
        const T* from = source_data + (term->source * num_heads + head) * size;
        // No distance is no decay, also of an infinite slope.
        const T factor = term->distance == 0
                             ? T{1}
                             : static_cast<T>(std::exp(-slopes[static_cast<size_t>(head)] *
                                                       static_cast<double>(term->distance)));
        for (int64_t i = 0; i < size; ++i) to[i] += factor * from[i];
      }
    });
  });
}

}  // namespace evenkeel
