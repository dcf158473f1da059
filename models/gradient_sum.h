// What is left to do for the gradients a rank owns once data-parallel ranks have added up theirs:
// tensor-parallel ranks have each a part of the gradients of what they hold alike, the first and
// last pipeline stage of those of a tied embedding. And their norm, each parameter counted once.
#pragma once

#include <cstdint>
#include <vector>

#include "models/parameters.h"
#include "parallel/mesh_comms.h"
#include "parallel/parameter_store.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

class GradientSum {
 public:
  GradientSum() = default;
  GradientSum(const ParameterLayout& layout, const ParameterStore& store, const ModelAxes& axes,
              bool tie_embeddings);

  // Completes `gradients` [num_owned] and adds the sum of the squares of the whole model's to
  // sum_of_squares [1] (float64). Every rank calls it.
  void Finish(const OpContext& context, TensorView gradients, TensorView sum_of_squares) const;

 private:
  struct Range {
    int64_t begin = 0;
    int64_t end = 0;
  };
  // Owned elements that the ranks of an axis hold alike.
  struct Shared {
    AxisComm* axis = nullptr;
    std::vector<RowRange> to_packed;    // gradients -> a dense buffer
    std::vector<RowRange> from_packed;  // and back
    int64_t size = 0;
  };

  void Add(const OpContext& context, const Shared& shared, TensorView gradients) const;

  Shared all_, key_value_;
  Range tied_;
  std::vector<Range> counted_;  // ranges of the gradients that count on this rank
  ModelAxes axes_;
  bool counts_over_data_ = false;
};

}  // namespace evenkeel
