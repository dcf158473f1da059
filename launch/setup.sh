#!/usr/bin/env bash
# Makes a bare Debian 12 or Ubuntu 24.04 machine ready and builds the program.
set -euo pipefail
# shellcheck source=launch/shell_steps.sh
source "$(dirname "${BASH_SOURCE[0]}")/shell_steps.sh"

usage() {
  cat <<'TEXT'
Usage: launch/setup.sh [--no-install] [TARGET...]

Installs the distribution's packages that are missing (with sudo where needed), configures the preset
cpu and builds TARGETs (default: evenkeel) into build/cpu. What is done already is skipped.

  --no-install  install nothing: if a package is missing, say which and exit with 2
TEXT
}

install=yes
targets=()
for argument in "$@"; do
  case $argument in
    -h | --help) usage && exit 0 ;;
    --no-install) install=no ;;
    -*) usage >&2 && fail "unknown option $argument" ;;
    *) targets+=("$argument") ;;
  esac
done
[[ ${#targets[@]} -gt 0 ]] || targets=(evenkeel)

# Programs, and the package that brings each; any program on the PATH will do.
declare -A program_packages=(
  [g++]=g++ [cmake]=cmake [ninja]=ninja-build [git]=git [python3]=python3 [mpirun]=openmpi-bin)
library_packages=(libopenmpi-dev libopenblas-dev libyaml-cpp-dev libabsl-dev libcli11-dev
  nlohmann-json3-dev libxxhash-dev libgtest-dev libgmock-dev)

is_installed() { [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

missing=()
for program in "${!program_packages[@]}"; do
  command -v "$program" >/dev/null || missing+=("${program_packages[$program]}")
done
if command -v dpkg-query >/dev/null; then
  for package in "${library_packages[@]}"; do
    is_installed "$package" || missing+=("$package")
  done
else
  say "This is no Debian or Ubuntu; CMake will say which of these libraries it cannot find:"
  say "  ${library_packages[*]}"
fi

# The package lists of a fresh image are empty, those of an old one name files that are gone.
apt_install() {
  local as_root=()
  [[ $(id -u) == 0 ]] || as_root=(sudo)
  "${as_root[@]}" apt-get update &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

if [[ ${#missing[@]} -gt 0 ]]; then
  if [[ $install == no ]]; then
    say "missing packages: ${missing[*]}"
    say "to install them:  sudo apt-get install ${missing[*]}"
    exit 2
  fi
  command -v apt-get >/dev/null || fail "no apt-get here; please install: ${missing[*]}"
  if [[ $(id -u) != 0 ]]; then
    command -v sudo >/dev/null || fail "neither root nor sudo; please install: ${missing[*]}"
    say "sudo is needed to install: ${missing[*]}"
    sudo -v || fail "no leave to install packages"
  fi
  quietly packages "installing ${#missing[@]} packages" apt_install "${missing[@]}" || exit 2
fi

cd "$repository"
quietly configure-cpu "configuring preset cpu" cmake --preset cpu || exit 1
build_targets cpu "${targets[@]}" || exit 1
