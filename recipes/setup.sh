# Sourced by the recipes and tests/run.sh: make a virtual environment and install corecli, once.
# Usage: source recipes/setup.sh EXTRAS, from the repository root.
if [[ -z ${VIRTUAL_ENV:-} ]]; then
  if [[ ! -x .venv/bin/python ]]; then
    for python in python3 python3.13 python3.12 python3.11 none; do  # a program on PATH may still fail to run
      "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    done
    [[ $python != none ]] || { echo "corecli needs Python 3.11 or newer" >&2; exit 69; }
    "$python" -m venv .venv
  fi
  source .venv/bin/activate
fi
setup_key=$({ pwd; cat pyproject.toml; } | sha256sum | cut -c1-16)
if [[ ! -e $VIRTUAL_ENV/.corecli-$1-$setup_key && ! -e $VIRTUAL_ENV/.corecli-test-$setup_key ]]; then
  echo "installing corecli[$1] into $VIRTUAL_ENV" >&2
  python -m pip install --quiet --disable-pip-version-check --editable ".[$1]" >&2
  touch "$VIRTUAL_ENV/.corecli-$1-$setup_key"
fi
