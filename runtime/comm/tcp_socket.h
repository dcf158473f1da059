// TCP between the ranks of a job, for what must work while MPI does not. Blocking calls with short
// time-outs; no call raises SIGPIPE. Internal to runtime/comm.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace evenkeel {

// Owns a file descriptor; -1 is none.
class TcpSocket {
 public:
  TcpSocket() = default;
  explicit TcpSocket(int fd) : fd_(fd) {}
  TcpSocket(TcpSocket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  TcpSocket& operator=(TcpSocket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  TcpSocket(const TcpSocket&) = delete;
  TcpSocket& operator=(const TcpSocket&) = delete;
  ~TcpSocket() { Close(); }

  int fd() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }
  void Close();

  // All of it, or an error after `timeout_s` without progress.
  absl::Status Send(const void* data, size_t num_bytes, double timeout_s) const;
  absl::Status Receive(void* data, size_t num_bytes, double timeout_s) const;

 private:
  int fd_ = -1;
};

// Listens on a port of the system's choice, on all interfaces.
absl::StatusOr<TcpSocket> ListenOnTcp(int* port);
absl::StatusOr<TcpSocket> AcceptTcp(const TcpSocket& listener);
// `address`: a numeric one.
absl::StatusOr<TcpSocket> ConnectTcp(const std::string& address, int port, double timeout_s);

// Numeric addresses of this host's interfaces that are up, the loopback first.
std::vector<std::string> HostAddresses();

}  // namespace evenkeel
