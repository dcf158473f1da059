// Whether this build can run on GPUs. Code that calls into CUDA stands behind
// `if constexpr (kWithCuda)`: a build without CUDA compiles the call and never links it.
#pragma once

namespace evenkeel {

#ifdef EK_WITH_CUDA
inline constexpr bool kWithCuda = true;
#else
inline constexpr bool kWithCuda = false;
#endif

}  // namespace evenkeel
