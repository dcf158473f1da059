#!/usr/bin/env bash
# Checks and measures what needs several GPUs: communicators, layouts, disaggregated attention, linear
# attention over ranks, and what happens when a rank dies.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'TEXT'
Usage: benchmarks/multi_gpu.sh [PART ...] [-DNAME=VALUE ...]

Builds (options -D are passed to cmake), runs the parts named, or all, on all GPUs and where it tells
something on 2 and 4 of them, and ends with tables. The exit code is 0 only if nothing failed.

  build           only builds
  check           tests of NCCL's calls and time-outs, and of layouts' gradients
  comm            bandwidths of collectives, messages and copies, in nccl-tests' columns
  layouts         Llama of 953 M parameters and Llama 3 8B under dp, ZeRO, tp, pp, cp: strong and weak scaling
  disaggregation  disaggregated attention beside per-document cp and dp, two mixes of lengths, 32K to 512K;
                  messages, tolerances; beside each step what `evenkeel simulate` foretells
  linear          TransNormerLLM 1B with one sequence over all GPUs, 32K to 4M tokens
  failures        a rank is killed or stops: time until the job ends, exit code, message, processes left

A part takes its cases in the order of their importance until its time is over, and names those it left
out. What layouts do not fit is left out, too.

Environment
  OUT               receives PART.jsonl, multi_gpu.json, tables.md and logs (build/multi_gpu)
  TIME_LIMIT        seconds for all parts together, after the build (530; 240 with QUICK)
  LIMIT_PART        seconds of one part, e.g. LIMIT_LAYOUTS=300; else parts share the time
  QUICK=1           only the most important cases
  RESUME=1          keep what OUT has and do the cases that are missing
  CASES             regular expression of the cases to run, as the tables name them
  SET               a setting of every training run of layouts, disaggregation, linear: key=value
  LENGTHS           folder of pretrain.json and prolong.json, lists of document lengths; else made up
  DEVICE            cuda, or cpu to try the script (cuda)
  RANKS             2, 4 or 8 ranks to use (the most that have GPUs; 2 on cpu)
  RANKS_PER_GPU     more than 1: ranks share GPUs, over sockets; to try the script (1)
  SIZE              full, or small models to try the script (full on GPUs of one rank each, else small);
                    full layouts on cpu are the quickstart's model, other parts are not made for that
  BIN_DIR           take all programs from this folder and build nothing
  BUILD_DIR         where to build (build/DEVICE)
TEXT
}

all_parts=(check comm layouts disaggregation linear failures)
parts=()
cmake_options=()
build_only=0
for argument in "$@"; do
  case $argument in
    -h | --help) usage && exit 0 ;;
    -D*) cmake_options+=("$argument") ;;
    build) build_only=1 ;;
    check | comm | layouts | disaggregation | linear | failures) parts+=("$argument") ;;
    *) usage >&2 && printf 'error: unknown argument %s\n' "$argument" >&2 && exit 2 ;;
  esac
done
if ((${#parts[@]})); then build_only=0; else parts=("${all_parts[@]}"); fi

# Multicast over NVLink stays off.
export NCCL_NVLS_ENABLE=0
export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1} PYTHONDONTWRITEBYTECODE=1
if [[ $(id -u) == 0 ]]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
device=${DEVICE:-cuda}
build=${BUILD_DIR:-build/$device}
out=${OUT:-build/multi_gpu}
ranks_per_gpu=${RANKS_PER_GPU:-1}
ranks=1
mkdir -p "$out/logs"

say() { printf '%s\n' "$*"; }
stop() {
  say "error: $*" >&2
  exit 2
}

# The share of the time that a part gets when all run.
weight_of() {
  case $1 in
    check) say 60 ;;
    comm) say 40 ;;
    layouts) say 155 ;;
    disaggregation) say 140 ;;
    linear) say 60 ;;
    failures) say 80 ;;
  esac
}

build_programs() {
  local log=$out/logs/build.log targets=(evenkeel)
  if [[ " ${parts[*]} " == *" check "* ]]; then
    if [[ $device == cuda ]]; then
      targets+=(nccl_comm_test nccl_timeout_test layouts_cuda_test)
    else
      targets+=(mpi_comm_test)
    fi
  fi
  if { cmake --preset "$device" -B "$build" "${cmake_options[@]}" &&
    cmake --build "$build" --target "${targets[@]}"; } >"$log" 2>&1; then
    return 0
  fi
  tail -n 60 "$log"
  say "error: it does not build; the whole log is $log" >&2
  exit 1
}

# seconds_for PART: what LIMIT_PART says, or its share of what is left.
seconds_for() {
  local variable=LIMIT_${1^^} sum=0 left=$((deadline - SECONDS)) part is_later=0
  if [[ -n ${!variable:-} ]]; then
    say "${!variable}"
    return
  fi
  for part in "${parts[@]}"; do
    if [[ $part == "$1" ]]; then is_later=1; fi
    if ((is_later)); then sum=$((sum + $(weight_of "$part"))); fi
  done
  say $((left * $(weight_of "$1") / sum))
}

run_part() {
  local seconds code=0 options
  seconds=$(seconds_for "$1")
  say "== $1, $seconds s"
  options=(--device "$device" --build "$build" --ranks "$ranks" --ranks-per-gpu "$ranks_per_gpu"
    --size "$size" --seconds "$seconds" --cases "${CASES:-.}" --out "$out")
  if [[ -n ${BIN_DIR:-} ]]; then options+=(--bin "$BIN_DIR"); fi
  if [[ -n ${QUICK:-} ]]; then options+=(--quick); fi
  if [[ -n ${RESUME:-} ]]; then options+=(--resume); fi
  if [[ -n ${SET:-} ]]; then options+=(--set "$SET"); fi
  if [[ $1 == disaggregation && -n ${LENGTHS:-} ]]; then options+=(--lengths "$LENGTHS"); fi
  # A part keeps to its time by itself; this is for one that hangs.
  timeout -k 25 $((seconds + 15)) python3 "benchmarks/multi_gpu/$1.py" "${options[@]}" || code=$?
  if ((code == 0)); then return 0; fi
  say "FAILED: part $1 ended with $code"
  failed+=("$1")
}

case $device in
  cuda)
    if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >"$out/machine.txt" 2>&1; then
      stop "no NVIDIA GPU here; DEVICE=cpu tries the script without"
    fi
    nvidia-smi topo -m >>"$out/machine.txt" 2>/dev/null || true
    found=$(($(grep -c '^GPU [0-9]' "$out/machine.txt") * ranks_per_gpu))
    for count in 2 4 8; do if ((count <= found)); then ranks=$count; fi; done
    ranks=${RANKS:-$ranks}
    ;;
  cpu)
    uname -a >"$out/machine.txt"
    ranks=${RANKS:-2}
    ;;
  *) stop "DEVICE is cuda or cpu, not $device" ;;
esac
[[ $ranks == [248] ]] || stop "needs 2, 4 or 8 ranks, not $ranks; RANKS_PER_GPU lets ranks share a GPU"
size=small
if [[ $device == cuda && $ranks_per_gpu == 1 ]]; then size=full; fi
size=${SIZE:-$size}
cat "$out/machine.txt"
if [[ -z ${BIN_DIR:-} ]]; then build_programs; fi
if ((build_only)); then exit 0; fi

time_limit=${TIME_LIMIT:-$([[ -n ${QUICK:-} ]] && echo 240 || echo 530)}
deadline=$((SECONDS + time_limit))
failed=()
for part in "${parts[@]}"; do run_part "$part"; done
say
python3 benchmarks/multi_gpu/tables.py "$out" "${parts[@]}"
if ((${#failed[@]})); then say "FAILED: ${failed[*]}"; fi
((${#failed[@]} == 0))
