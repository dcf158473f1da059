#!/usr/bin/env bash
# Builds everything and runs all tests.
set -euo pipefail
# shellcheck source=launch/shell_steps.sh
source "$(dirname "${BASH_SOURCE[0]}")/shell_steps.sh"

usage() {
  cat <<'TEXT'
Usage: launch/test.sh [--no-install]

Builds preset cpu and runs its tests (unit, mpi, e2e), then those that feed hostile input once more
under the address and undefined-behaviour sanitizers. Where nvcc is on the PATH, the CUDA sources are
compiled too. Ends with a summary; the exit code is 0 only if everything passed.

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

# Device code is compiled and not run: this needs the CUDA Toolkit and no GPU.
if command -v nvcc >/dev/null; then
  say
  quietly configure-cuda "configuring preset cuda" cmake --preset cuda
  mapfile -t cuda_targets < <(ninja -C build/cuda -t targets all |
    sed -n 's/^\(ek_[a-z_]*_cuda\): phony.*/\1/p' | sort -u)
  if build_targets cuda "${cuda_targets[@]}"; then
    note cuda "compiled: ${cuda_targets[*]}" 0
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
