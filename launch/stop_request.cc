#include "launch/stop_request.h"

#include <signal.h>
#include <unistd.h>

#include <cstring>

namespace evenkeel {
namespace {

volatile sig_atomic_t caught_signal = 0;

void OnSignal(int signal) {
  const bool ends = signal == SIGINT || signal == SIGTERM;
  if (ends && (caught_signal == SIGINT || caught_signal == SIGTERM)) _exit(128 + signal);
  caught_signal = signal;
}

}  // namespace

void CatchStopSignals() {
  struct sigaction action;
  std::memset(&action, 0, sizeof(action));
  action.sa_handler = OnSignal;
  action.sa_flags = SA_RESTART;
  for (int signal : {SIGUSR1, SIGUSR2, SIGTERM, SIGINT}) (void)sigaction(signal, &action, nullptr);
  action.sa_handler = SIG_IGN;
  (void)sigaction(SIGXFSZ, &action, nullptr);
}

std::string CaughtSignal() {
  switch (caught_signal) {
    case 0:
      return "";
    case SIGUSR1:
      return "SIGUSR1";
    case SIGUSR2:
      return "SIGUSR2";
    case SIGTERM:
      return "SIGTERM";
    default:
      return "SIGINT";
  }
}

}  // namespace evenkeel
