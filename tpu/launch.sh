#!/usr/bin/env bash
# Runs `cartridges ARGUMENTS` on all workers, in tmux, and follows the first one's log; where a job
# still runs, that one is followed.
source "$(dirname "$0")/common.sh"
[ $# -gt 0 ] || { echo "usage: tpu/launch.sh SUBCOMMAND [--flag=value ...]" >&2; exit 2; }
command=$(printf '%q ' .venv/bin/cartridges "$@" --distributed)
# The job's end is written down where resume.sh looks for it: its exit status.
inner=$(printf '%q' "cd cartridges && ($command; echo \$? > status) 2>&1 | tee -a run.log")
on_workers all "tmux has-session -t cartridges 2>/dev/null || {
  rm -f cartridges/status; touch cartridges/run.log; tmux new-session -d -s cartridges $inner; }"
exec "$(dirname "$0")/logs.sh"
