#!/usr/bin/env bash
# Runs the trainer as a job of GKE or any Kubernetes: launch/gke.sh --gin pretrain.gin --image IMAGE ... (see --help).
set -euo pipefail
# shellcheck source=launch/python.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/python.sh"
run_module launch.kubernetes "$@"
