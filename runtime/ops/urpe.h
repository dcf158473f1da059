// Urpe, the position encoding of TransNormer v1 (Qin et al., "Linearized Relative Positional
// Encoding", TMLR 2023): a fixed Householder reflection, then a rotation of neighbouring dimensions
// (2 j, 2 j + 1) by learned angles:
//   z = x - 2 u (u . x);   y_2j = z_2j cos a - z_2j+1 sin a,  y_2j+1 = z_2j+1 cos a + z_2j sin a
// with a = theta_j p_t. Both maps are orthogonal, so q . k depends on the distance alone.
#pragma once

#include <cstdint>

#include "runtime/ops/mirrored_array.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// x, y [T, H, D], D even; theta [D / 2]; reflection u [D], a unit vector; positions [T]. y may be
// x.
void UrpeForward(const OpContext& context, ConstTensorView x, ConstTensorView theta,
                 ConstTensorView reflection, Positions positions, TensorView y);

// y is the forward pass's output. dx [T, H, D] = gradient (may be dy); dtheta [D / 2] += gradient,
// in an order that depends on the shape alone. The reflection is not trained.
void UrpeBackward(const OpContext& context, ConstTensorView y, ConstTensorView theta,
                  ConstTensorView reflection, Positions positions, ConstTensorView dy,
                  TensorView dx, TensorView dtheta);

}  // namespace evenkeel
