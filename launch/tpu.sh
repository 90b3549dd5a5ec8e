#!/usr/bin/env bash
# Runs the trainer on Cloud TPU: launch/tpu.sh --accelerator v5litepod-8 --zone us-west1-c --gin pretrain.gin ... (see --help).
set -euo pipefail
# shellcheck source=launch/python.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/python.sh"
run_module launch.tpu "$@"
