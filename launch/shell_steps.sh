# What the launch scripts share; to be sourced. Needs bash.
# shellcheck shell=bash

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ $(id -u) == 0 ]]; then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

# Columns for what is done and for how long it took.
step_format='%-58s'

say() { printf '%s\n' "$*"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# quietly NAME TEXT COMMAND...: runs a command with its output in build/logs/NAME.log, which is shown
# only if the command fails. Returns the command's exit code.
quietly() {
  local log=$repository/build/logs/$1.log text=$2 begin=$SECONDS code=0
  shift 2
  mkdir -p "${log%/*}"
  # shellcheck disable=SC2059
  printf "$step_format" "$text"
  "$@" >"$log" 2>&1 </dev/null || code=$?
  if [[ $code == 0 ]]; then
    printf '%5d s\n' $((SECONDS - begin))
  else
    printf ' failed\n'
    tail -n 60 "$log" >&2
    printf 'error: "%s" ended with %d; the whole log is in %s\n' "$*" "$code" "$log" >&2
  fi
  return "$code"
}

# build_targets PRESET TARGET...: compiles with all cores; on a terminal ninja's own line tells how
# far it is.
build_targets() {
  local preset=$1 text="compiling preset $1: ${*:2}"
  shift
  local command=(ninja -C "$repository/build/$preset" -j "$(nproc)" "$@")
  if [[ -t 1 ]]; then
    say "$text"
    "${command[@]}"
  else
    quietly "build-$preset" "$text" "${command[@]}"
  fi
}
