#!/usr/bin/env bash
# Runs `cartridges ARGUMENTS` on the TPU VM in tmux and follows its log.
set -euo pipefail
: "${TPU_NAME:?name of the VM}" "${TPU_ZONE:?its zone}"
[ $# -gt 0 ] || { echo "usage: tpu/launch.sh SUBCOMMAND [--flag=value ...]" >&2; exit 2; }
command=$(printf '%q ' .venv/bin/cartridges "$@")
inner=$(printf '%q' "cd cartridges && $command 2>&1 | tee -a run.log; echo finished >> run.log")
gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$TPU_ZONE" \
  --command="touch cartridges/run.log; tmux new-session -d -s cartridges $inner; tail -n 0 -f cartridges/run.log"
