#!/usr/bin/env bash
# Runs the trainer on this machine, from any folder: launch/local.sh --gin quickstart.gin
# Python: $PYTHON, else the active virtual environment, else .venv of this repository, else python3. --help says the rest.
set -euo pipefail

repository="$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd)"

if [[ -n "${PYTHON:-}" ]]; then
  python="$PYTHON"
elif [[ -n "${VIRTUAL_ENV:-}" ]]; then
  python="$VIRTUAL_ENV/bin/python"
elif [[ -x "$repository/.venv/bin/python" ]]; then
  python="$repository/.venv/bin/python"
else
  python=python3
fi

export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m launch.local "$@"
