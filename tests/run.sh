#!/usr/bin/env bash
# Every test: makes .venv if no environment is active, installs, runs pytest with the arguments given.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source recipes/setup.sh test
python -m pytest "$@"
