#!/usr/bin/env bash
# Repeat an experiment of docs/evidence.md, then write its tables and plot again.
# Usage: bash recipes/evidence.sh CLAIM [SCALE] [VARIABLE=VALUE...]
#   CLAIM is a file of recipes/evidence/claims, and SCALE one of recipes/evidence/scales (default: digits).
#   bash recipes/evidence.sh pairs digits SEEDS="10 11" JOBS=2     some seeds, for example on one of several machines
#   bash recipes/evidence.sh pairs digits SEEDS="0 1 2" SETTING=digits-long STEPS=1200     another setting
#   bash recipes/evidence.sh pairs imagenet --dry-run              print the command lines without running them
# Finished files in evidence-out/ are not made again: run the same line again after any stop.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CLAIM=${1:?name a claim: $(cd recipes/evidence/claims && echo *.mk | sed 's/\.mk//g')}
SCALE=${2:-digits}
shift $(($# > 1 ? 2 : 1))
variables=() jobs=1 dry= docs=docs results=recipes/evidence/results
for word in "$@"; do
  case $word in
    JOBS=*) jobs=${word#JOBS=} ;;
    DOCS=*) docs=${word#DOCS=} ;;
    --dry-run) dry=yes ;;
    RESULTS=*) results=${word#RESULTS=} variables+=("$word") ;;
    *) variables+=("$word") ;;
  esac
done
for file in "claims/$CLAIM" "scales/$SCALE"; do
  [[ -f recipes/evidence/$file.mk ]] || { echo "evidence: no file recipes/evidence/$file.mk" >&2; exit 2; }
done
graph=(make --no-print-directory -f "recipes/evidence/claims/$CLAIM.mk" SCALE="$SCALE" "${variables[@]}")
if [[ -n $dry ]]; then
  "${graph[@]}" -n | sed -n 's/.*run.sh \([^ ]*\) /corecli /p'
  exit
fi
command -v corecli >/dev/null || source recipes/setup.sh digits,timm
"${graph[@]}" -s -j "$jobs"
python3 recipes/evidence/table.py "$docs" "$results"
