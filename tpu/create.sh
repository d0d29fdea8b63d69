#!/usr/bin/env bash
# Makes a TPU VM and waits until it can be reached. Settings come from the environment.
set -euo pipefail
: "${TPU_NAME:?a name for the VM}" "${TPU_ZONE:?such as us-west4-a}" "${TPU_TYPE:?such as v5litepod-8}"
gcloud compute tpus tpu-vm create "$TPU_NAME" --zone="$TPU_ZONE" \
  --accelerator-type="$TPU_TYPE" --version="${TPU_VERSION:-v2-alpha-tpuv5-lite}"
until gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$TPU_ZONE" --command=true; do sleep 10; done
