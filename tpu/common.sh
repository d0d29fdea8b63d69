# Read by the other scripts: settings from the environment, and how they run what they run.
# shellcheck shell=bash
set -euo pipefail
: "${TPU_NAME:?a name for the slice}" "${TPU_ZONE:?such as us-west4-a}"

# Runs a command; with DRY_RUN=1 it is printed instead.
run() {
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# Runs a shell command on the workers given first: all, or a number.
on_workers() {
  run gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$TPU_ZONE" --worker="$1" --command="$2"
}

# What the queue says of the slice: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, FAILED, ...; NONE if
# there is none, UNKNOWN if the question failed.
slice_state() {
  local said
  if [ -n "${DRY_RUN:-}" ]; then
    echo "${DRY_RUN_STATE:-ACTIVE}"
  elif said=$(gcloud compute tpus queued-resources describe "$TPU_NAME" --zone="$TPU_ZONE" \
    --format='value(state.state)' 2>&1); then
    echo "$said"
  else
    case "$said" in *NOT_FOUND*) echo NONE ;; *) echo UNKNOWN ;; esac
  fi
}
