#!/bin/bash
# Builds the CUDA ops, runs their tests, checks them with compute-sanitizer and times them on one
# NVIDIA GPU.
#
#   benchmarks/gpu_ops.sh [cmake options ...]
#
# With BIN_DIR set, takes the programs from there and builds nothing. SANITIZE=0 leaves the checks out.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ -z "${BIN_DIR:-}" ]]; then
  build=${BUILD_DIR:-build/cuda}
  cmake --preset cuda -B "$build" "$@" >/tmp/evenkeel_cuda_configure.log
  cmake --build "$build" --target ops_cuda_test gpu_ops | tail -n 1
  test=$build/tests/gpu/ops_cuda_test
  bench=$build/benchmarks/gpu_ops
else
  test=$BIN_DIR/ops_cuda_test
  bench=$BIN_DIR/gpu_ops
fi
failed=0
"$test" --gtest_brief=1 || failed=1
"$bench" || failed=1
if [[ "${SANITIZE:-1}" == 1 ]]; then
  for tool in memcheck racecheck; do
    echo "== $tool"
    # cuBLASLt's kernels are not ours to check.
    timeout "${SANITIZE_SECONDS:-90}" compute-sanitizer --tool "$tool" --error-exitcode 9 "$test" \
      --gtest_filter='-*Products*' --gtest_brief=1 | tail -n 8 || failed=1
  done
fi
exit "$failed"
