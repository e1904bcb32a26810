#!/usr/bin/env bash
# run.sh TARGET VERB...: run a verb at low priority on one thread and store its CPU seconds in TARGET.cpu.
# If TARGET is a .json that the verb prints, it is stored too.
set -euo pipefail
target=$1
mkdir -p "$(dirname "$target")"
shift
command=(corecli "$@")
if [[ $1 == python3 ]]; then command=("$@"); fi
echo "+ ${command[*]}" >&2
export OMP_NUM_THREADS=1
TIMEFORMAT='%U %S'
if [[ " $* " == *" --json "* ]]; then
  { time nice -n 19 "${command[@]}" --quiet 2>&3 >"$target.tmp"; } 3>&2 2>>"$target.cpu"
  mv "$target.tmp" "$target"
else
  { time nice -n 19 "${command[@]}" >&3 2>&3; } 3>&2 2>>"$target.cpu"
fi
