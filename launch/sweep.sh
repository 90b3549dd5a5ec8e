#!/usr/bin/env bash
# Runs the trainer many times with other Gin parameters, from any folder (--help says how).
set -euo pipefail
# shellcheck source=launch/python.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/python.sh"
run_module launch.sweep "$@"
