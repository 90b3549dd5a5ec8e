# shellcheck shell=bash
# Sourced by the launchers: runs a module of this repository, from any folder, with the right Python:
# $PYTHON, else that of the active virtual environment, else .venv of this repository, else python3.

run_module() {
  local repository python
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
  exec "$python" -m "$@"
}
