#!/usr/bin/env bash
# Runs the trainer on this machine, from any folder: launch/local.sh --gin quickstart.gin (--help says the rest).
set -euo pipefail
# shellcheck source=launch/python.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/python.sh"
run_module launch.local "$@"
