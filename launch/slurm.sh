#!/usr/bin/env bash
# Runs the trainer as a job of a Slurm cluster: launch/slurm.sh --gin pretrain.gin --nodes 2 --gpus_per_node 8 ... (see --help).
set -euo pipefail
# shellcheck source=launch/python.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/python.sh"
run_module launch.slurm "$@"
