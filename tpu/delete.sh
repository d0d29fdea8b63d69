#!/usr/bin/env bash
# Gives the slice back, with everything on its disks; what is in shared/ stays.
source "$(dirname "$0")/common.sh"
run gcloud compute tpus queued-resources delete "$TPU_NAME" --zone="$TPU_ZONE" --force --quiet
