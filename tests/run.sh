#!/usr/bin/env bash
# Every test: makes .venv if no environment is active, installs, runs pytest with the arguments given.
# The tests run in one process per core, each on one thread; benchmarks (-m bench) run one after another.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source recipes/setup.sh test
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
workers=auto
[[ " $* " != *bench* ]] || workers=0
python -m pytest --numprocesses "$workers" --dist loadfile "$@"
