// The tables of linear attention of gpu_attention.
#pragma once

namespace evenkeel {

// Forward and backward of whole sequences, with fixed decay.
void BenchLightning();
// A token of each of many sequences, beside a plain copy.
void BenchDecode();

}  // namespace evenkeel
