#!/usr/bin/env bash
# Runs jdkd on a Cloud TPU: a single host, or every worker of a slice.
#
#   launch/tpu_vm.sh up NAME ZONE [OPTIONS] [-- ARGUMENTS OF jdkd.main]
#       creates the TPU VM if there is none, copies HEAD to it, installs, starts, follows the log
#   launch/tpu_vm.sh watch NAME ZONE [OPTIONS] [-- ARGUMENTS]
#       does the same without the log and stays until the run ends: it recreates a preempted TPU
#       and resumes the run
#   launch/tpu_vm.sh logs | status | stop | delete NAME ZONE [--queued]
#       follows worker 0's log; shows TPU and run states; saves and stops the run; deletes the TPU
#
#   --type=TYPE             accelerator type, by default v5litepod-8; v5p-16, v6e-32, v4-8, ...
#   --queued                requests a queued resource and waits for it
#   --spot                  uses cheaper capacity, which may be preempted
#   --bucket=gs://B/PATH    is the workdir, from which a new machine goes on; without a bucket, the
#                           workdir is lost with the machine
#   --version=VERSION       TPU software version; the default depends on the type
#
#   launch/tpu_vm.sh watch a us-west4-a --queued --spot --bucket=gs://mine/a -- \
#       --config configs/mta4dpr.py:msmarco
#
# Needs an authenticated gcloud, and write access to the bucket for the TPU's service account.
set -euo pipefail

usage() {
  sed -n '2,23s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

(($# >= 3)) || usage
command=$1 name=$2 zone=$3
shift 3
type=v5litepod-8 queued='' spot=() bucket='' version=''
while (($#)) && [[ $1 != -- ]]; do
  case $1 in
    --type=?*) type=${1#*=} ;;
    --queued) queued=1 ;;
    --spot) spot=(--spot) ;;
    --bucket=gs://?*) bucket=${1#*=} ;;
    --version=?*) version=${1#*=} ;;
    *)
      echo "'$1' is no option" >&2
      usage
      ;;
  esac
  shift
done
if (($#)); then shift; fi
(($#)) || set -- --config configs/mta4dpr.py
for argument in "$@"; do
  if [[ $argument == --workdir* ]]; then
    echo 'the workdir is on the TPU VM; leave --workdir out and give --bucket.' >&2
    exit 2
  fi
done
if [[ -z $version ]]; then
  case $type in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    *) version=tpu-ubuntu2204-base ;;
  esac
fi
pause=${PAUSE_SECONDS:-60}  # Between two looks at the state.

tpu() {
  gcloud compute tpus tpu-vm "$1" "$name" --zone="$zone" "${@:2}"
}
queue() {
  gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" "${@:2}"
}
on() { # WORKER COMMAND...
  tpu ssh --worker="$1" --command="$(printf '%q ' "${@:2}")"
}
say() {
  echo "[launch] $*" >&2
}

# Prints the TPU's state: READY, waiting, gone (all one can do is delete it), or none.
tpu_state() {
  local found
  if [[ $queued ]]; then
    found=$(queue describe --format='value(state.state)' 2>/dev/null) || found=none
  else
    found=$(tpu describe --format='value(state)' 2>/dev/null) || found=none
  fi
  case $found in
    ACTIVE | READY) echo READY ;;
    FAILED | SUSPENDING | SUSPENDED | PREEMPTED | TERMINATED | STOPPED) echo gone ;;
    none) echo none ;;
    *) echo waiting ;;
  esac
}

# Prints the run's state on worker 0: running, ended CODE, none, or unknown if there is no answer.
run_state() {
  on 0 bash -c 'if [[ -e jdkd ]]; then jdkd/launch/worker.sh state; else echo none; fi' \
    2>/dev/null || echo unknown
}

create() {
  if [[ $queued ]]; then
    queue create --node-id="$name" --accelerator-type="$type" --runtime-version="$version" \
      "${spot[@]}"
  else
    tpu create --accelerator-type="$type" --version="$version" "${spot[@]}"
  fi
}

delete() {
  if [[ $queued ]]; then
    queue delete --force --quiet
  else
    tpu delete --quiet
  fi
}

# Creates the TPU and waits for it. Retries a failed creation only if the TPU existed before.
had=''
ready() {
  local state
  while state=$(tpu_state) && [[ $state != READY ]]; do
    case $state in
      none)
        say "creating $name ($type)"
        if ! create; then
          if [[ ! $had ]]; then exit 1; fi
          say 'that failed; trying again'
        fi
        ;;
      gone)
        say "$name was taken away; deleting what is left of it"
        delete || say 'that failed; trying again'
        continue
        ;;
    esac
    if [[ $(tpu_state) != READY ]]; then sleep "$pause"; fi
  done
  had=1
}

begin() {
  local archive
  archive=$(mktemp --suffix=.tar)
  # `scp --recurse .` would also copy runs and virtual environments.
  git -C "$(dirname "$0")/.." archive --output="$archive" HEAD &&
    gcloud compute tpus tpu-vm scp "$archive" "$name:jdkd.tar" --zone="$zone" --worker=all &&
    rm -f "$archive" &&
    on all bash -c 'mkdir -p jdkd && tar -x -f jdkd.tar -C jdkd' &&
    on all jdkd/launch/worker.sh prepare ${bucket:+"$bucket"} &&
    on all jdkd/launch/worker.sh start ${bucket:+"$bucket"} -- "$@"
}

watch() {
  local state code retries=0 forgotten
  while true; do
    ready
    if [[ $(run_state) == none ]]; then
      say "starting on $name"
      if ! begin "$@"; then
        if [[ $(tpu_state) == READY ]] && ((++retries > 5)); then exit 1; fi
        say 'that failed; trying again'
        sleep "$pause"
        continue
      fi
    fi
    forgotten=0
    while [[ $(tpu_state) == READY ]]; do
      state=$(run_state)
      case $state in
        none)
          # A host that was restarted has forgotten the run.
          if ((++forgotten == 5)); then break; fi
          ;;
        running) forgotten=0 ;;
        'ended 0')
          say "the run has ended; launch/tpu_vm.sh delete $name $zone deletes the TPU"
          exit 0
          ;;
        'ended '*)
          code=${state#ended }
          # Codes from 75 mean a signal, or that another worker stopped: the run can be resumed.
          if ((code < 75 || ++retries > 5)); then
            say "the run has ended with code $code; launch/tpu_vm.sh logs $name $zone says why"
            exit "$code"
          fi
          say "the run was stopped with code $code; going on"
          on all jdkd/launch/worker.sh stop || true
          on all jdkd/launch/worker.sh start ${bucket:+"$bucket"} -- "$@" || true
          ;;
      esac
      sleep "$pause"
    done
  done
}

case $command in
  up)
    ready
    # Never replaces the code of a run in progress.
    if [[ $(run_state) != running ]]; then begin "$@"; fi
    on 0 tail -n +1 -F jdkd-vm/run.log
    ;;
  watch) watch "$@" ;;
  logs) on 0 tail -n +1 -F jdkd-vm/run.log ;;
  status)
    echo "TPU $(tpu_state), run $(run_state)"
    ;;
  stop) on all jdkd/launch/worker.sh stop ;;
  delete) delete ;;
  *) usage ;;
esac
