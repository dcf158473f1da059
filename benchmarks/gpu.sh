#!/bin/bash
# Builds the CUDA kernels, runs their tests and times them beside PyTorch's on one NVIDIA GPU.
#
#   benchmarks/gpu.sh [--sanitize] [cmake options ...]
#
# The peers need a python3 with PyTorch (and flash-linear-attention for the last table); without them
# their tables are left out. --sanitize runs the tests under compute-sanitizer instead of timing.
set -euo pipefail
cd "$(dirname "$0")/.."
sanitize=0
if [[ "${1:-}" == --sanitize ]]; then
  sanitize=1
  shift
fi
build=${BUILD_DIR:-build/cuda}
tests=(attention_plan_cuda_test softmax_attention_cuda_test lightning_attention_cuda_test
  relu_attention_cuda_test)

cmake --preset cuda -B "$build" "$@" >"/tmp/evenkeel_cuda_configure.log"
cmake --build "$build" --target gpu_attention "${tests[@]}" | tail -n 1

if ((sanitize)); then
  for tool in memcheck racecheck; do
    for test in "${tests[@]:1}"; do
      echo "== $tool $test"
      compute-sanitizer --tool "$tool" --error-exitcode 9 "$build/tests/gpu/$test" \
        --gtest_filter="${SANITIZE_FILTER:-*}" --gtest_brief=1 | tail -n 5
    done
  done
  exit
fi

nvidia-smi --query-gpu=name,driver_version,clocks.max.sm --format=csv,noheader
for test in "${tests[@]}"; do
  "$build/tests/gpu/$test" --gtest_brief=1
done
python=0
if python3 -c "import torch, triton" 2>/dev/null; then python=1; fi
for table in softmax tasks; do
  "$build/benchmarks/gpu_attention" $table
  if ((python)); then python3 benchmarks/peers/gpu_softmax_attention.py $table; fi
done
"$build/benchmarks/gpu_attention" lightning
if ((python)); then
  dump=$(mktemp -d)
  "$build/benchmarks/gpu_attention" dump "$dump"
  python3 -W ignore benchmarks/peers/gpu_attention_error.py "$dump"
  rm -r "$dump"
  if python3 -c "import fla" 2>/dev/null; then python3 benchmarks/peers/gpu_linear_attention.py; fi
fi
