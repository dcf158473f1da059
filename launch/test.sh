#!/usr/bin/env bash
# Builds everything and runs all tests.
set -euo pipefail
# shellcheck source=launch/shell_steps.sh
source "$(dirname "${BASH_SOURCE[0]}")/shell_steps.sh"

usage() {
  cat <<'TEXT'
Usage: launch/test.sh [--no-install]

Builds preset cpu and runs its tests (unit, mpi, e2e), then those that feed hostile input once more
under the address and undefined-behaviour sanitizers. Where nvcc is on the PATH, preset cuda is built
too, and what needs no GPU is run from it. Ends with a summary; the exit code is 0 only if everything
passed.

  --no-install  install nothing: if a package is missing, say which and exit with 2
TEXT
}

setup_options=()
for argument in "$@"; do
  case $argument in
    -h | --help) usage && exit 0 ;;
    --no-install) setup_options+=(--no-install) ;;
    *) usage >&2 && fail "unknown argument $argument" ;;
  esac
done
begin=$SECONDS
cd "$repository"
hostile_input_tests=(config_test data_test checkpoint_test)
cuda_tests_without_gpu=(attention_plan_cuda_test command_line_test device_test)
results=()
failed=no

# note NAME RESULT PASSED?: keeps a line for the summary.
note() {
  results+=("$(printf '%-6s %s' "$1" "$2")")
  [[ $3 == 0 ]] || failed=yes
}

# test_preset PRESET CTEST_ARGUMENT...: runs tests, output shown, and notes ctest's own summary.
test_preset() {
  local preset=$1 code=0 log=build/logs/test-$1.log
  shift
  ctest --test-dir "build/$preset" --output-on-failure --no-tests=error -j "$(nproc)" "$@" |
    tee "$log" || code=$?
  note "$preset" "$(grep -E 'tests passed|No tests were found' "$log" || echo "ctest ended with $code")" \
    "$code"
}

launch/setup.sh "${setup_options[@]}" all
test_preset cpu

say
quietly configure-asan "configuring preset asan" cmake --preset asan
if build_targets asan "${hostile_input_tests[@]}"; then
  test_preset asan -R "^($(IFS='|' && echo "${hostile_input_tests[*]}"))\$"
else
  note asan "does not compile" 1
fi

# This needs the CUDA Toolkit and no GPU: all of it has to compile, the plans of kernels are host code,
# and a program built with CUDA has to train on the CPU of a host without a driver.
if command -v nvcc >/dev/null; then
  say
  if ! quietly configure-cuda "configuring preset cuda" cmake --preset cuda; then
    note cuda "cannot be configured" 1
  elif build_targets cuda all; then
    test_preset cuda -R "^($(IFS='|' && echo "${cuda_tests_without_gpu[*]}"))\$"
  else
    note cuda "does not compile" 1
  fi
else
  note cuda "not compiled: no nvcc on the PATH" 0
fi

say
say "Summary after $(((SECONDS - begin) / 60)) min $(((SECONDS - begin) % 60)) s"
printf '  %s\n' "${results[@]}"
[[ $failed == no ]]
