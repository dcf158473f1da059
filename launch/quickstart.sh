#!/usr/bin/env bash
# Trains a small long-context model on real documents over four MPI ranks, and shows what it learned.
set -euo pipefail
# shellcheck source=launch/shell_steps.sh
source "$(dirname "${BASH_SOURCE[0]}")/shell_steps.sh"

usage() {
  cat <<'TEXT'
Usage: launch/quickstart.sh [--no-install]

Builds the program, makes a data set of Perl's manual pages, trains configs/quickstart.yaml on four
ranks, and reports. Needs about ten minutes on two cores. What is done already is skipped: run it
again to go on where it was interrupted, or to see the report again.

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
launch/setup.sh "${setup_options[@]}" evenkeel

evenkeel=build/cpu/launch/evenkeel
config=configs/quickstart.yaml
data=data/quickstart
run=runs/quickstart
ranks=4
mpirun=$(sed -n 's/^MPIEXEC_EXECUTABLE:[A-Z]*=//p' build/cpu/CMakeCache.txt)
# Under the name that the messages give: `pidof mpirun` finds no mpiexec.
[[ ! -x ${mpirun%/*}/mpirun ]] || mpirun=${mpirun%/*}/mpirun
# Four ranks also on a machine of fewer cores, and each on any core.
mpirun_options=(--oversubscribe --bind-to none -np "$ranks")
[[ $(id -u) != 0 ]] || mpirun_options+=(--allow-run-as-root)

# Real text that comes with the distribution: the pages of package perl-doc, 300 bytes to 775 kB each.
# Unpacking a package needs no root, so nothing is installed for this. A subshell: it changes folder.
fetch_perl_doc() (
  rm -rf "$1" && mkdir -p "$1" && cd "$1" || exit 1
  if ! apt-get download perl-doc; then
    # A fresh image has no package lists yet.
    if [[ $(id -u) == 0 ]]; then apt-get update; else sudo apt-get update; fi &&
      apt-get download perl-doc || exit 1
  fi
  dpkg -x perl-doc_*.deb . && rm perl-doc_*.deb
)

has_data() {
  "$evenkeel" data stat $data/train && "$evenkeel" data stat ${data}/train_valid
} >/dev/null 2>&1

if ! has_data; then
  shopt -s nullglob
  pages=(/usr/share/perl/*/pod/*.pod)
  if [[ ${#pages[@]} -lt 100 ]]; then
    pages=("$data"/corpus/usr/share/perl/*/pod/*.pod)
  fi
  if [[ ${#pages[@]} -lt 100 ]]; then
    quietly perl-doc "downloading Perl's manual pages (package perl-doc)" \
      fetch_perl_doc $data/corpus || fail "please install package perl-doc, then run this again"
    pages=("$data"/corpus/usr/share/perl/*/pod/*.pod)
  fi
  quietly data "making the data set of ${#pages[@]} documents" \
    "$evenkeel" data build "${pages[@]}" --output $data/train --validation-fraction 0.05 \
    --skip-bad 20
fi
say
"$evenkeel" data stat $data/train
say

steps=$("$evenkeel" config check $config --print | sed -n 's/^ *steps: *\([0-9]*\).*/\1/p' | head -n 1)
if [[ ! -d $run/checkpoints/step-$(printf '%08d' "$steps") ]]; then
  say "training on $ranks ranks: mpirun ${mpirun_options[*]} $evenkeel train --config $config"
  "$mpirun" "${mpirun_options[@]}" "$evenkeel" train --config $config
  say
fi

say "Held-out perplexity by position in the document: how much does context help?"
"$mpirun" "${mpirun_options[@]}" "$evenkeel" eval --model $run --data $data/train_valid \
  --max-samples 24
say

prompt='=head1 DESCRIPTION'
say "What it writes after '$prompt':"
say
"$evenkeel" generate --model $run --prompt "$prompt" --max-tokens 400 --temperature 0.6 --seed 3 \
  --quiet | sed 's/^/    /'

# metric EVENT NAME: the values of one number in metrics.jsonl, a line each.
metric() {
  sed -n "/\"event\":\"$1\"/s/.*\"$2\":\([-+.0-9eE]*\).*/\1/p" $run/metrics.jsonl
}
first() { head -n 1; }
last() { tail -n 1; }
median() { sort -g | awk '{ value[NR] = $1 } END { print value[int((NR + 1) / 2)] }'; }
row() { printf '  %-22s %s\n' "$1" "$2"; }

say
say "Result"
row "documents" "$("$evenkeel" data stat $data/train | sed -n 's/^documents *//p')"
row "loss" "$(printf '%.3f -> %.3f' "$(metric train loss | first)" "$(metric train loss | last)")"
row "held-out perplexity" \
  "$(printf '%.1f -> %.2f' "$(metric eval perplexity | first)" "$(metric eval perplexity | last)")"
row "tokens/s" "$(printf '%.0f (median of %s steps, %s ranks)' \
  "$(metric train tokens_per_s | median)" "$(metric train step | wc -l)" "$ranks")"
row "run folder" "$run"
row "curve" "$run/loss.svg"
row "time" "$(((SECONDS - begin) / 60)) min $(((SECONDS - begin) % 60)) s"
cat <<TEXT

Try next
  $evenkeel generate --model $run --prompt 'The function' --temperature 0.8
  $evenkeel plan --config $config --ranks $ranks --set data.sequence_length=65536
  mpirun ${mpirun_options[*]} $evenkeel train --config $config \\
    --set folder=runs/longer --set train.steps=2000
  $evenkeel data build 'your/texts/**/*.txt' --output data/mine/train --validation-fraction 0.05
  tensorboard --logdir $run
  $evenkeel --help
TEXT
