#!/usr/bin/env bash
# mpirun for a run with dedicated attention servers (parallel.attention_servers) that is to go on
# when one of them is lost: without --enable-recovery, mpirun ends all ranks when one dies.
#
#   launch/resilient.sh -np 10 build/cpu/launch/evenkeel train --config configs/my_run.yaml
#
# Takes mpirun's arguments and hands on its signals. Ends with the program's own exit code: that of
# an mpirun with --enable-recovery is 0, and after Ctrl-C 1, whatever its ranks say.
set -uo pipefail

if [[ $# -lt 1 || $1 == -h || $1 == --help ]]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  [[ $# -ge 1 ]] && exit 0 || exit 2
fi
# Where the first rank's host sees it too.
folder=$(mktemp -d "$PWD/.evenkeel_exit.XXXXXX")
trap 'rm -rf "$folder"' EXIT
export EVENKEEL_EXIT_FILE=$folder/code
# In a session of its own: Ctrl-C would reach it from the terminal and from here, and the second one has
# it leave the ranks at once.
setsid "${MPIRUN:-mpirun}" --enable-recovery -x EVENKEEL_EXIT_FILE "$@" &
mpirun_pid=$!
for signal in HUP TERM INT USR1 USR2; do
  trap 'kill -'$signal' "$mpirun_pid" 2>/dev/null' "$signal"
done
# A signal ends `wait` early.
code=0
while true; do
  wait "$mpirun_pid"
  code=$?
  kill -0 "$mpirun_pid" 2>/dev/null || break
done
if [[ -s $EVENKEEL_EXIT_FILE ]]; then
  code=$(<"$EVENKEEL_EXIT_FILE")
elif [[ $code == 0 ]]; then
  echo "launch/resilient.sh: no rank of the program says how it ended" >&2
  code=1
fi
exit "$code"
