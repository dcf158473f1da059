#!/usr/bin/env bash
# Tests and measures everything that runs on an NVIDIA GPU, beside its peers in the same call.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'TEXT'
Usage: benchmarks/gpu.sh [SECTION ...] [-DNAME=VALUE ...]

Builds preset cuda (options -D are passed to cmake), runs the sections named, or all but sanitize, and
ends with tables of what they found. The exit code is 0 only if nothing failed.

  tests     every GPU test; those of NCCL and of layouts on 2 and 4 ranks, which may share one GPU
  kernels   attention beside PyTorch's cuDNN, FlashAttention-2 and flash-linear-attention, in single
            launches and at the power limit; its errors; a step of decoding beside a plain copy
  ops       everything around attention, beside a plain copy
  steps     whole training steps beside torch.compile
  error     errors of whole models in bf16 beside PyTorch's, both against float64
  curve     the quickstart model trained on the GPU and on the CPU (needs data/quickstart, which
            launch/quickstart.sh makes)
  sanitize  compute-sanitizer (memcheck, racecheck) on a choice of the tests

Peers need a python3 with PyTorch; some need flash-linear-attention. What is missing is left out, and
section error fails without PyTorch.

Environment
  BIN_DIR           take all programs from this folder and build nothing
  BUILD_DIR         where to build (build/cuda)
  OUT_DIR           receives SECTION.jsonl, logs, curve.svg and tables.md (build/gpu)
  LIMIT_SECTION     seconds a section may take, e.g. LIMIT_STEPS=300
  STEPS_FILTER      regular expression of the cases of steps, which read "1b 8192 2 none"
  CURVE_STEPS       steps of curve (480)
  CPU_RANKS         ranks of curve on the CPU (4)
  CPU_THREADS       threads of each of them; 0 shares the cores (0)
  SANITIZE_SECONDS  seconds one test may take in sanitize (180)
TEXT
}

all_sections=(tests kernels ops steps error curve sanitize)
sections=()
cmake_options=()
for argument in "$@"; do
  case $argument in
    -h | --help) usage && exit 0 ;;
    -D*) cmake_options+=("$argument") ;;
    tests | kernels | ops | steps | error | curve | sanitize) sections+=("$argument") ;;
    *) usage >&2 && printf 'error: unknown argument %s\n' "$argument" >&2 && exit 2 ;;
  esac
done
if ((${#sections[@]} == 0)); then sections=("${all_sections[@]::6}"); fi

# mpirun gives its ranks a terminal, and colors would hide what run_test looks for.
export GTEST_COLOR=no
export NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-0}
if [[ $(id -u) == 0 ]]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
build=${BUILD_DIR:-build/cuda}
out=${OUT_DIR:-build/gpu}
mkdir -p "$out/logs"
failures=()
left_out=()

say() { printf '%s\n' "$*"; }

# fail TEXT: notes a failure and goes on.
fail() {
  say "FAILED: $*"
  failures+=("$*")
}

# leave_out TEXT: notes what could not be done here, once.
leave_out() {
  if [[ " ${left_out[*]} " == *" $* "* ]]; then return 0; fi
  say "left out: $*"
  left_out+=("$*")
}

# programs_of SECTION: the programs that it runs.
programs_of() {
  case $1 in
    tests) say "${gpu_tests[@]}" "${rank_tests[@]}" attention_plan_cuda_test evenkeel ;;
    kernels) say gpu_attention ;;
    ops) say gpu_ops ;;
    steps) say evenkeel ;;
    error) say gpu_model_dump ;;
    curve) say evenkeel ;;
    sanitize) say "${gpu_tests[@]}" ;;
  esac
}
gpu_tests=(ops_cuda_test relu_attention_cuda_test lightning_attention_cuda_test
  lightning_decode_cuda_test softmax_attention_cuda_test merge_state_cuda_test
  context_parallel_cuda_test model_cuda_test)
rank_tests=(nccl_comm_test nccl_timeout_test layouts_cuda_test)

# program NAME: its path.
program() {
  if [[ -n ${BIN_DIR:-} ]]; then
    say "$BIN_DIR/$1"
    return
  fi
  case $1 in
    nccl_*_test) say "$build/tests/gpu/comm/$1" ;;
    layouts_cuda_test) say "$build/tests/gpu/layouts/$1" ;;
    *_test) say "$build/tests/gpu/$1" ;;
    evenkeel) say "$build/launch/$1" ;;
    *) say "$build/benchmarks/$1" ;;
  esac
}

# begin SECTION SECONDS: starts its clock; LIMIT_SECTION in the environment goes before SECONDS.
begin() {
  local variable=LIMIT_${1^^}
  section=$1
  deadline=$((SECONDS + ${!variable:-$2}))
  lines=$out/$1.jsonl
  : >"$lines"
  say "== $1"
}

# limited SECONDS COMMAND...: runs it for that long at most, and never beyond the section's end.
limited() {
  local seconds=$1 left=$((deadline - SECONDS))
  shift
  if ((left <= 0)); then
    say "the section's time is over"
    return 124
  fi
  timeout -k 10 "$((seconds < left ? seconds : left))" "$@"
}

# reason CODE: what an exit code says, in a word.
reason() {
  case $1 in
    0) say ok ;;
    124 | 137) say "out of time" ;;
    *) say "exit code $1" ;;
  esac
}

no_torch="peers, which need a python3 with PyTorch"
no_fla="peers of linear attention, which need a python3 with flash-linear-attention"

# has MODULE: does python3 have it?
has() { python3 -c "import $1" >/dev/null 2>&1; }

# run_test NAME WITH SECONDS COMMAND...: runs a test program and notes what it says of itself. A test
# that skips everything has tested nothing.
run_test() {
  local name=$1 with=$2 seconds=$3 from=$SECONDS code=0 passed skipped result
  local log="$out/logs/$1${2:+-${2// /-}}.log"
  shift 3
  limited "$seconds" "$@" >"$log" 2>&1 </dev/null || code=$?
  passed=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$log" | tail -n 1)
  skipped=$(sed -n 's/^\[  SKIPPED \] \([0-9]*\) test.*/\1/p' "$log" | tail -n 1)
  if [[ -z $passed ]]; then  # of Python's unittest
    passed=$(sed -n 's/^Ran \([0-9]*\) tests\? in.*/\1/p' "$log")
    skipped=$(sed -n 's/^OK (skipped=\([0-9]*\)).*/\1/p' "$log")
    passed=$((${passed:-0} - ${skipped:-0}))
  fi
  result=$(reason "$code")
  if [[ $code == 0 && ${passed:-0} == 0 ]]; then result="no test ran"; fi
  printf '{"section": "%s", "test": "%s", "with": "%s", "result": "%s", ' \
    "$section" "$name" "$with" "$result" >>"$lines"
  printf '"passed": %d, "skipped": %d, "seconds": %d}\n' \
    "${passed:-0}" "${skipped:-0}" $((SECONDS - from)) >>"$lines"
  say "$name ${with:+($with) }$result"
  if [[ $result != ok ]]; then
    tail -n 30 "$log"
    fail "$name${with:+ with $with}: $result ($log)"
  fi
}

run_tests() {
  begin tests 540
  for name in "${gpu_tests[@]}"; do
    run_test "$name" "" 300 "$(program "$name")" --gtest_brief=1
  done
  for name in "${rank_tests[@]}"; do
    for ranks in 2 4; do
      run_test "$name" "$ranks ranks" 150 mpirun --oversubscribe --bind-to none -np "$ranks" \
        "$(program "$name")" --gtest_brief=1
    done
  done
  local evenkeel
  evenkeel=$(program evenkeel)
  if [[ -x $evenkeel ]]; then
    run_test gpu_test "whole runs" 200 env EVENKEEL="$evenkeel" MPIEXEC=mpirun \
      python3 tests/e2e/gpu_test.py
  fi
  # Plain host code: a folder of programs need not have it.
  if [[ -x $(program attention_plan_cuda_test) ]]; then
    run_test attention_plan_cuda_test "" 60 "$(program attention_plan_cuda_test)" --gtest_brief=1
  fi
}

# measure TABLE PEER SECONDS COMMAND...: runs a program that prints columns and keeps them as lines.
measure() {
  local table=$1 peer=$2 seconds=$3 code=0
  local log=$out/logs/$section-$table-$peer.txt
  shift 3
  limited "$seconds" "$@" >"$log" 2>"$log.err" </dev/null || code=$?
  python3 benchmarks/gpu_tables.py read "$section" "$table" "$peer" <"$log" >>"$lines" ||
    fail "$log has other columns than gpu_tables.py knows"
  say "$table $peer: $(reason "$code")"
  if [[ $code != 0 ]]; then
    tail -n 10 "$log.err"
    fail "$section $table $peer: $(reason "$code") ($log)"
  fi
}

run_kernels() {
  begin kernels 540
  local attention torch=0
  attention=$(program gpu_attention)
  if has "torch, triton"; then torch=1; else leave_out "$no_torch"; fi
  for table in softmax tasks; do
    measure "$table" evenkeel 120 "$attention" "$table"
    if ((torch)); then
      measure "$table" peers 150 python3 benchmarks/peers/gpu_softmax_attention.py "$table"
    fi
  done
  measure sustained evenkeel 90 "$attention" sustained
  if ((torch)); then
    measure sustained cudnn 90 python3 benchmarks/peers/gpu_softmax_attention.py sustained
  fi
  measure lightning evenkeel 90 "$attention" lightning
  measure decode evenkeel 60 "$attention" decode
  ((torch)) || return 0
  if has fla; then
    measure lightning fla 150 python3 -W ignore benchmarks/peers/gpu_linear_attention.py
  else
    leave_out "$no_fla"
  fi
  local dump=$out/attention_dump
  mkdir -p "$dump"
  if limited 60 "$attention" dump "$dump"; then
    measure error pytorch 120 python3 -W ignore benchmarks/peers/gpu_attention_error.py "$dump"
  else
    fail "gpu_attention dump"
  fi
  rm -rf "$dump"
}

run_ops() {
  begin ops 120
  measure ops evenkeel 110 "$(program gpu_ops)"
}

# our_step PRESET SEQUENCE BATCH RECOMPUTE STEPS bf16|fp8: the line of `evenkeel bench step`. Presets have the
# shapes of benchmarks/peers/gpu_train_step.py.
our_step() {
  local json=$out/logs/step.json config=configs/llama_1b.yaml settings=() setting
  case $1 in
    1b) ;;
    160m) settings=(num_layers=12 hidden_size=768 num_heads=12 intermediate_size=2048) ;;
    tnl-1b)
      config=configs/transnormerllm_1b.yaml
      settings=(tie_embeddings=false scale_embedding=false final_norm_gain=true)
      ;;
  esac
  local options=(--model "$config" --lengths "$2" --tokens $(($2 * $3)) --set "runtime.recompute=$4"
    --runs "$5" --device cuda --json "$json")
  for setting in "${settings[@]}"; do options+=(--set "model.$setting"); done
  if [[ $6 == fp8 ]]; then options+=(--set runtime.fp8=true); fi
  limited 150 "$(program evenkeel)" bench step "${options[@]}" &&
    python3 benchmarks/gpu_tables.py step "$1" "$json"
}

# step WHO PRESET SEQUENCE BATCH RECOMPUTE STEPS: one line, or one that says what went wrong. WHO: ours,
# fp8 (ours, with products in FP8), peer or peer-clip (which clips the gradient as we do).
step() {
  local who=$1 code=0 peer line log clip=()
  shift
  if [[ ! "$1 $2 $3 $4" =~ ${STEPS_FILTER:-.} ]]; then return 0; fi
  log=$out/logs/steps-$who-$1-$2-$3-$4.log
  if [[ $who != peer* ]]; then
    peer=evenkeel
    our_step "$@" "${who/ours/bf16}" >"$log" 2>"$log.err" </dev/null || code=$?
  else
    peer=torch.compile
    if [[ $who == peer-clip ]]; then clip=(clip); fi
    limited 240 python3 -W ignore benchmarks/peers/gpu_train_step.py "$@" "${clip[@]}" >"$log" \
      2>"$log.err" </dev/null || code=$?
  fi
  line=$(grep '^{' "$log" | tail -n 1) || true
  if [[ $code == 0 && -n $line ]]; then
    say "$line"
    say "{\"section\": \"steps\", ${line#\{}" >>"$lines"
    return 0
  fi
  tail -n 5 "$log.err"
  printf '{"section": "steps", "peer": "%s", "preset": "%s", "seq": %d, "batch": %d, ' \
    "$peer" "$1" "$2" "$3" >>"$lines"
  printf '"recompute": "%s", "products": "%s", "error": "%s"}\n' "$4" "${who/ours/bf16}" \
    "$(reason "$code")" >>"$lines"
  # A peer that fails says nothing against us.
  if [[ $who != peer* ]]; then
    fail "steps $who $*: $(reason "$code") ($log.err)"
  else
    say "the peer of $*: $(reason "$code") ($log.err)"
  fi
}

run_steps() {
  begin steps 960
  local peer=0 linear_peer=0
  if has "torch, triton"; then peer=1; else leave_out "$no_torch"; fi
  if ((peer)) && has fla; then linear_peer=1; else leave_out "$no_fla"; fi
  for _ in 1 2; do
    step ours 1b 8192 2 none 10
    step fp8 1b 8192 2 none 10
    if ((peer)); then step peer 1b 8192 2 none 10; fi
  done
  if ((peer)); then step peer-clip 1b 8192 2 none 10; fi
  for case in "1b 32768 1" "160m 8192 4"; do
    # shellcheck disable=SC2086
    step ours $case none 10
    # shellcheck disable=SC2086
    if ((peer)); then step peer $case none 10; fi
  done
  step ours 1b 131072 1 all_but_attention 3
  for case in "2048 8" "8192 2" "16384 1" "32768 1"; do
    # shellcheck disable=SC2086
    step ours tnl-1b $case none 10
    if ((linear_peer)) && [[ $case == "16384 1" ]]; then step peer tnl-1b 16384 1 none 10; fi
  done
  step fp8 tnl-1b 8192 2 none 10
  for length in 16384 65536 131072 262144; do
    step ours tnl-1b $length 1 layer 5
  done
}

run_error() {
  begin error 180
  if ! has "torch, safetensors"; then
    fail "error: needs a python3 with torch and safetensors"
    return 0
  fi
  local dump=$out/model_dump code=0
  rm -rf "$dump"
  mkdir -p "$dump"
  limited 60 "$(program gpu_model_dump)" "$dump" || code=$?
  if ((code == 0)); then
    limited 120 python3 -W ignore benchmarks/peers/gpu_model_error.py "$dump" --json "$lines" \
      >"$out/logs/error.log" || code=$?
    grep FAILED "$out/logs/error.log" || true
  fi
  rm -rf "$dump"
  if ((code != 0)); then fail "error: $(reason "$code")"; fi
}

# train NAME RANKS OPTION...: trains the quickstart's config in build/gpu/curve/NAME.
train() {
  local name=$1 ranks=$2 code=0 log=$out/logs/curve-$1.log
  shift 2
  rm -rf "build/gpu/curve/$name"
  mkdir -p build/gpu/curve
  limited 3600 mpirun --oversubscribe --bind-to none -np "$ranks" "$(program evenkeel)" train \
    --config configs/quickstart.yaml --set "folder=build/gpu/curve/$name" \
    --set "train.steps=${CURVE_STEPS:-480}" --set checkpoint.every=0 "$@" \
    >"$log" 2>&1 </dev/null || code=$?
  say "$name: $(reason "$code")"
  if ((code == 0)); then return 0; fi
  tail -n 10 "$log"
  fail "curve $name: $(reason "$code") ($log)"
  return 1
}

run_curve() {
  begin curve 900
  if [[ ! -e data/quickstart/train.bin ]]; then
    leave_out "curve, which needs data/quickstart; launch/quickstart.sh makes it"
    return 0
  fi
  local curves=()
  # The GPU first: what takes long comes last.
  if train gpu 1 --set runtime.device=cuda; then curves+=("GPU=build/gpu/curve/gpu"); fi
  if train fp8 1 --set runtime.device=cuda --set runtime.fp8=true; then
    curves+=("FP8=build/gpu/curve/fp8")
  fi
  if train cpu "${CPU_RANKS:-4}" --set runtime.device=cpu --set "runtime.threads=${CPU_THREADS:-0}"; then
    curves=("CPU=build/gpu/curve/cpu" "${curves[@]}")
  fi
  if ((${#curves[@]} == 0)); then return 0; fi
  python3 benchmarks/gpu_curve.py "$out/curve.svg" "${curves[@]}" >>"$lines"
  say "curves: $out/curve.svg"
}

# Chosen so that each ends in about two minutes under either tool. cuBLASLt's kernels are not ours to
# check, so the products are left out; the models cannot do without them.
sanitize_filter() {
  case $1 in
    ops_cuda_test) say '-*Products*' ;;
    relu_attention_cuda_test) say '*BlocksOfPackedDocuments:*QueriesAhead*:*DecodeSteps:*NothingToDo*' ;;
    lightning_attention_cuda_test) say '*PackedDocuments:*DecayFromNoneToTotal:*StatesInPlace:*CombinedStates:*NoTokens' ;;
    lightning_decode_cuda_test) say '*DecayFromNoneToTotal:*RandomShapes:*BitsDoNot*:*BesideNaN:*TheOpDecodes' ;;
    softmax_attention_cuda_test) say '*DecodeSteps:*SeveralKeyTiles:*ShardsThatShareTheirPrefix:*QueriesWithoutKeys:*VeryLow*' ;;
    merge_state_cuda_test | context_parallel_cuda_test) say '*' ;;
    model_cuda_test) say '*GradientsAreTheCpus/llama:*GradientsAreTheCpus/tnl:*GradientsAreTheCpus/*_t1' ;;
  esac
}

run_sanitize() {
  begin sanitize 1500
  if ! command -v compute-sanitizer >/dev/null; then
    fail "sanitize: no compute-sanitizer on the PATH"
    return 0
  fi
  for tool in memcheck racecheck; do
    for name in "${gpu_tests[@]}"; do
      if [[ $tool == racecheck && $name == model_cuda_test ]]; then continue; fi
      run_test "$name" "$tool" "${SANITIZE_SECONDS:-180}" compute-sanitizer --tool "$tool" \
        --error-exitcode 9 "$(program "$name")" --gtest_brief=1 \
        --gtest_filter="$(sanitize_filter "$name")"
    done
  done
}

if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
  say "error: no NVIDIA GPU here" >&2
  exit 2
fi
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm --format=csv,noheader
if [[ -z ${BIN_DIR:-} ]]; then
  targets=()
  for section in "${sections[@]}"; do
    read -ra programs <<<"$(programs_of "$section" | tr '\n' ' ')"
    targets+=("${programs[@]}")
  done
  log=$out/logs/build.log
  if ! { cmake --preset cuda -B "$build" "${cmake_options[@]}" &&
    cmake --build "$build" --target "${targets[@]}"; } >"$log" 2>&1; then
    tail -n 60 "$log"
    say "error: it does not build; the whole log is $log" >&2
    exit 1
  fi
fi

results=()
for section in "${sections[@]}"; do
  case $section in
    tests) run_tests ;;
    kernels) run_kernels ;;
    ops) run_ops ;;
    steps) run_steps ;;
    error) run_error ;;
    curve) run_curve ;;
    sanitize) run_sanitize ;;
  esac
  results+=("$lines")
done
say
python3 benchmarks/gpu_tables.py show --markdown "$out/tables.md" "${results[@]}"
if ((${#left_out[@]})); then printf 'Left out: %s\n' "${left_out[@]}"; fi
if ((${#failures[@]})); then printf 'FAILED: %s\n' "${failures[@]}"; fi
((${#failures[@]} == 0))
