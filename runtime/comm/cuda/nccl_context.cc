#include "runtime/comm/cuda/nccl_context.h"

#include <unistd.h>

#include <array>

#include "absl/strings/str_cat.h"
#include "runtime/comm/status_board.h"

namespace evenkeel {

NcclContext::NcclContext(const NcclOptions& options)
    : options_(options),
      compute_waits_(options.compute_stream),
      watchdog_(options.device, options.timeout_s, options.on_failure) {
  std::array<char, 256> host = {};
  if (gethostname(host.data(), host.size() - 1) == 0) host_ = host.data();
}

std::string NcclContext::Place(int rank, int size) const {
  return absl::StrCat("rank ", rank, " of ", size, " (host ", host_, ", pid ", getpid(), ")");
}

NcclPatience NcclContext::Patience() {
  return {MonotonicNanoseconds() + static_cast<int64_t>(options_.timeout_s * 1e9),
          [this] { return watchdog_.has_failed(); }};
}

}  // namespace evenkeel
