// Philox4x32-10: a counter-based random generator (Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3", SC 2011). A value is a pure function of (seed, stream, index), so what is drawn does
// not depend on the number of ranks, on threads, or on what was drawn before; there is no state to
// save in a checkpoint beyond the index.
#pragma once

#include <cmath>
#include <cstdint>

#include "runtime/base/host_device.h"

namespace evenkeel {

class Philox {
 public:
  struct Words {
    uint32_t x[4];
  };

  // `stream` separates independent uses of one seed, e.g. a hash of a parameter's name.
  EK_HOST_DEVICE Philox(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}

  // Returns the four 32-bit words of block `index`.
  EK_HOST_DEVICE Words Block(uint64_t index) const {
    Words w = {{Low(index), High(index), Low(stream_), High(stream_)}};
    uint32_t k0 = Low(seed_), k1 = High(seed_);
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = uint64_t{0xD2511F53} * w.x[0], p1 = uint64_t{0xCD9E8D57} * w.x[2];
      w = {{High(p1) ^ w.x[1] ^ k0, Low(p1), High(p0) ^ w.x[3] ^ k1, Low(p0)}};
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    return w;
  }

  // Returns 64 random bits.
  EK_HOST_DEVICE uint64_t Bits(uint64_t index) const {
    const Words w = Block(index);
    return uint64_t{w.x[0]} << 32 | w.x[1];
  }

  // Returns a value in [0, 1) with 53 random bits.
  EK_HOST_DEVICE double Uniform(uint64_t index) const {
    return static_cast<double>(Bits(index) >> 11) * 0x1p-53;
  }

  // Returns a standard normal value (Box-Muller; the two halves of a block are its two uniforms).
  EK_HOST_DEVICE double Normal(uint64_t index) const {
    const Words w = Block(index);
    const double u = (static_cast<double>(uint64_t{w.x[0]} << 21 | w.x[1] >> 11) + 1) * 0x1p-53;
    const double v = static_cast<double>(uint64_t{w.x[2]} << 21 | w.x[3] >> 11) * 0x1p-53;
    return std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586476925 * v);
  }

 private:
  EK_HOST_DEVICE static uint32_t Low(uint64_t x) { return static_cast<uint32_t>(x); }
  EK_HOST_DEVICE static uint32_t High(uint64_t x) { return static_cast<uint32_t>(x >> 32); }

  uint64_t seed_;
  uint64_t stream_;
};

}  // namespace evenkeel
