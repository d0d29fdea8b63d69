#!/usr/bin/env bash
# Follows the log of a worker (WORKER=0) until the job ends there; Ctrl-C stops the following alone.
source "$(dirname "$0")/common.sh"
# shellcheck disable=SC2016  # the worker expands it
on_workers "${WORKER:-0}" 'cd cartridges
  tail -n 20 -f run.log & follower=$!
  until test -f status; do sleep 5; done
  sleep 1; kill $follower; echo "the job ended with status $(cat status)"'
