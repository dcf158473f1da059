// CRC-32C (Castagnoli): polynomial 0x1EDC6F41, bits reflected, initial value and final xor of all
// ones (RFC 3720, appendix B.4).
#pragma once

#include <cstdint>
#include <string>

namespace evenkeel {

uint32_t Crc32c(const std::string& bytes);

}  // namespace evenkeel
