#include "runtime/comm/tcp_socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace evenkeel {
namespace {

absl::Status Failed(const std::string& what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

absl::Status AwaitReady(int fd, short events, double timeout_s, const char* what) {
  pollfd entry = {fd, events, 0};
  int ready = -1;
  do {
    ready = poll(&entry, 1, static_cast<int>(timeout_s * 1e3));
  } while (ready < 0 && errno == EINTR);
  if (ready < 0) return Failed(what);
  if (ready == 0) return absl::DeadlineExceededError(absl::StrCat(what, " timed out"));
  return absl::OkStatus();
}

void SetOptions(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  fcntl(fd, F_SETFD, FD_CLOEXEC);
}

absl::StatusOr<TcpSocket> ListenOn(int family, int* port) {
  TcpSocket listener(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!listener.is_open()) return Failed("socket");
  sockaddr_storage address = {};
  address.ss_family = static_cast<sa_family_t>(family);  // any address, any port
  socklen_t length = family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  if (family == AF_INET6) {
    const int off = 0;  // IPv4 as well
    setsockopt(listener.fd(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
  }
  if (bind(listener.fd(), reinterpret_cast<sockaddr*>(&address), length) != 0) {
    return Failed("bind");
  }
  if (listen(listener.fd(), SOMAXCONN) != 0) return Failed("listen");
  length = sizeof(address);
  if (getsockname(listener.fd(), reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return Failed("getsockname");
  }
  *port = ntohs(family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&address)->sin6_port
                                   : reinterpret_cast<sockaddr_in*>(&address)->sin_port);
  return listener;
}

}  // namespace

void TcpSocket::Close() {
  if (fd_ >= 0) close(std::exchange(fd_, -1));
}

absl::Status TcpSocket::Send(const void* data, size_t num_bytes, double timeout_s) const {
  const char* at = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const ssize_t sent = send(fd_, at, num_bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) {
      at += sent;
      num_bytes -= static_cast<size_t>(sent);
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) return Failed("send");
    if (absl::Status status = AwaitReady(fd_, POLLOUT, timeout_s, "send"); !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

absl::Status TcpSocket::Receive(void* data, size_t num_bytes, double timeout_s) const {
  char* at = static_cast<char*>(data);
  while (num_bytes > 0) {
    if (absl::Status status = AwaitReady(fd_, POLLIN, timeout_s, "receive"); !status.ok()) {
      return status;
    }
    const ssize_t got = recv(fd_, at, num_bytes, MSG_DONTWAIT);
    if (got == 0) return absl::UnavailableError("the connection is closed");
    if (got > 0) {
      at += got;
      num_bytes -= static_cast<size_t>(got);
    } else if (errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK) {
      return Failed("receive");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<TcpSocket> ListenOnTcp(int* port) {
  absl::StatusOr<TcpSocket> listener = ListenOn(AF_INET6, port);
  return listener.ok() ? std::move(listener) : ListenOn(AF_INET, port);
}

absl::StatusOr<TcpSocket> AcceptTcp(const TcpSocket& listener) {
  TcpSocket socket(accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!socket.is_open()) return Failed("accept");
  SetOptions(socket.fd());
  return socket;
}

absl::StatusOr<TcpSocket> ConnectTcp(const std::string& address, int port, double timeout_s) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(address.c_str(), absl::StrCat(port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::InvalidArgumentError(absl::StrCat(address, ": ", gai_strerror(error)));
  }
  const std::string what = absl::StrCat("connecting to ", address, " port ", port);
  TcpSocket socket(::socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int result =
      socket.is_open() ? connect(socket.fd(), found->ai_addr, found->ai_addrlen) : -1;
  const int connect_error = errno;
  freeaddrinfo(found);
  if (!socket.is_open() || (result != 0 && connect_error != EINPROGRESS)) {
    errno = connect_error;
    return Failed(what);
  }
  if (absl::Status status = AwaitReady(socket.fd(), POLLOUT, timeout_s, what.c_str());
      !status.ok()) {
    return status;
  }
  int socket_error = 0;
  socklen_t length = sizeof(socket_error);
  getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &socket_error, &length);
  if (socket_error != 0) {
    errno = socket_error;
    return Failed(what);
  }
  SetOptions(socket.fd());
  return socket;
}

std::vector<std::string> HostAddresses() {
  std::vector<std::string> addresses = {"127.0.0.1"};
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return addresses;
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || (entry->ifa_flags & IFF_UP) == 0 ||
        (entry->ifa_flags & IFF_LOOPBACK) != 0) {
      continue;
    }
    const int family = entry->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    char text[NI_MAXHOST];
    const socklen_t length = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    if (getnameinfo(entry->ifa_addr, length, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) == 0) {
      addresses.emplace_back(text);
    }
  }
  freeifaddrs(list);
  return addresses;
}

}  // namespace evenkeel
