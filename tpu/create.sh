#!/usr/bin/env bash
# Queues a TPU slice and waits until it is there. TPU_SPOT=1 asks for one that may be taken away.
source "$(dirname "$0")/common.sh"
: "${TPU_TYPE:?such as v5litepod-16 or v6e-8}"
case "$TPU_TYPE" in
  v5lite*) version=v2-alpha-tpuv5-lite ;;
  v5p*) version=v2-alpha-tpuv5 ;;
  v6e*) version=v2-alpha-tpuv6e ;;
  *) version=${TPU_VERSION:?the runtime version of $TPU_TYPE} ;;
esac
spot=()
[ -z "${TPU_SPOT:-}" ] || spot=(--spot)
run gcloud compute tpus queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" \
  --zone="$TPU_ZONE" --accelerator-type="$TPU_TYPE" \
  --runtime-version="${TPU_VERSION:-$version}" "${spot[@]}"
[ -z "${DRY_RUN:-}" ] || exit 0
until state=$(slice_state) && [ "$state" = ACTIVE ]; do
  case "$state" in
    FAILED | SUSPENDED | NONE) echo "the request is $state" >&2; exit 1 ;;
  esac
  echo "$state; looking again in 30 s"
  sleep 30
done
