#!/usr/bin/env bash
# Like launch.sh, again and again: a slice that was taken away is made and installed anew, and the
# job goes on from its last checkpoint. Give it an --out in shared/ (see TPU_NFS in install.sh).
here=$(dirname "$0")
source "$here/common.sh"
[ $# -gt 0 ] || { echo "usage: tpu/resume.sh SUBCOMMAND [--flag=value ...]" >&2; exit 2; }
while true; do
  case "$(slice_state)" in
    ACTIVE) ;;
    SUSPENDED | SUSPENDING | FAILED | NONE)
      "$here/delete.sh" || true
      { "$here/create.sh" && "$here/install.sh"; } || { sleep 60; continue; } ;;
    *) sleep 30; continue ;;  # still waiting, or nobody answered
  esac
  "$here/launch.sh" "$@" || true  # the connection ends with the slice
  status=$(on_workers 0 'cat cartridges/status' || true)
  [ -z "${DRY_RUN:-}" ] || exit 0
  case "$status" in
    0 | 2 | 130) exit "$status" ;;  # done, a mistake, or stopped by hand
    *) echo "the slice is gone, or the job was told to stop; going on" >&2; sleep 30 ;;
  esac
done
