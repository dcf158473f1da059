// The names of element-wise functions and gated units, apart from what computes them: kernels
// include this and nothing else of the ops.
#pragma once

namespace evenkeel {

enum class Activation {
  kSilu,    // x sigmoid(x)
  kElu,     // x > 0 ? x : exp(x) - 1            (TransNormer v1, T1)
  kOneElu,  // 1 + elu(x)                        (TransNormer v1, T2)
};

// Gated units of a pair of branches, gate (or first) and up (or second).
//   SwiGLU: h = silu(gate) up      (Llama)
//   SGLU:   h = first second       (TransNormerLLM)
enum class GatedUnit { kSwiGlu, kSglu };

}  // namespace evenkeel
