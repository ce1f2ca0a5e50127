#!/usr/bin/env bash
# What launch/tpu_vm.sh does on each worker of a TPU VM, from the copy of this repository there.
#
#   launch/worker.sh prepare [gs://BUCKET/PATH]                     install, share the workdir, fetch
#   launch/worker.sh start [gs://BUCKET/PATH] -- ARGUMENTS OF jdkd.main
#   launch/worker.sh stop | state
#
# The workdir is WORKDIR, a directory of worker 0 that the other workers mount over NFS. With a
# bucket, worker 0 copies it there every minute and once it ends, and back when it is on a new
# machine. A copy of a workdir in use is safe: jdkd renames what is finished into place and checks
# all that it reads against checksums, so that what was copied halfway is made again.
set -euo pipefail

home=${JDKD_HOME:-$HOME/jdkd-vm}
workdir=${WORKDIR:-/mnt/jdkd}
python=$home/env/bin/python
log=$home/run.log pid=$home/pid code=$home/code
here=$(cd "$(dirname "$0")/.." && pwd)

# What the TPU VM says of itself; JAX reads the same.
metadata() {
  curl -sf -H 'Metadata-Flavor: Google' \
    "http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes/$1"
}
worker=$(metadata agent-worker-number)
IFS=, read -ra endpoints <<<"$(metadata worker-network-endpoints)"
first=${endpoints[0]##*:}  # Of name:id:address, or an address.

copy() {
  gcloud storage rsync --recursive --quiet "$@"
}

fetch() {
  local found
  if found=$(gcloud storage ls "$bucket/" 2>&1); then
    copy "$bucket" "$workdir"
  elif [[ $found != *'matched no objects'* ]]; then
    echo "$bucket cannot be read: $found" >&2
    exit 1
  fi
  touch "$home/fetched"  # Without which nothing is written to the bucket.
}

push() {
  copy --delete-unmatched-destination-objects --exclude='^lock$,.*\.tmp-[0-9]+/.*' \
    "$workdir" "$bucket" || echo "$workdir was not copied to $bucket; trying again later" >&2
}

share() {
  sudo mkdir -p "$workdir"
  if ((worker == 0)); then
    sudo chown "$(id -u)" "$workdir"
    if ((${#endpoints[@]} > 1)); then
      sudo apt-get install --quiet --yes nfs-kernel-server
      printf '%s' "$workdir" | sudo tee /etc/exports.d/jdkd.exports >/dev/null
      local endpoint
      for endpoint in "${endpoints[@]:1}"; do
        printf ' %s(rw,no_subtree_check,all_squash,anonuid=%s,anongid=%s)' \
          "${endpoint##*:}" "$(id -u)" "$(id -g)"
      done | sudo tee -a /etc/exports.d/jdkd.exports >/dev/null
      sudo exportfs -ra
    fi
  elif ! mountpoint -q "$workdir"; then
    sudo apt-get install --quiet --yes nfs-common
    local tries=60  # Worker 0 installs its server meanwhile.
    until sudo mount -t nfs "$first:$workdir" "$workdir"; do
      ((--tries)) || exit 1
      sleep 5
    done
  fi
}

prepare() {
  mkdir -p "$home"
  pip install --quiet --user uv
  # The image's own Python is too old; uv brings one.
  python3 -m uv venv --quiet --allow-existing --python 3.12 "$home/env"
  python3 -m uv pip install --quiet --python "$python" -e "${here}[tpu]"
  share
  if ((worker == 0)) && [[ -n $bucket && ! -e $home/fetched ]]; then fetch; fi
}

running() {
  [[ -e $pid ]] && kill -0 "$(cat "$pid")" 2>/dev/null
}

# The run, until it ends: its exit code is left behind. SIGTERM goes to jdkd, which saves.
run() {
  local ended child pusher=''
  cd "$here"
  "$python" -m jdkd.main "$@" --workdir "$workdir" </dev/null &
  child=$!
  trap 'kill -TERM "$child"' TERM
  if ((worker == 0)) && [[ -n $bucket ]]; then
    while sleep "${PUSH_SECONDS:-60}"; do push; done &
    pusher=$!
  fi
  while true; do
    ended=0
    wait "$child" || ended=$?
    if ! kill -0 "$child" 2>/dev/null; then break; fi  # Else the signal was all that ended.
  done
  if [[ $pusher ]]; then
    kill "$pusher"
    push
  fi
  echo "$ended" >"$code"
}

start() {
  if running; then return; fi
  if ((worker == 0)) && [[ -n $bucket && ! -e $home/fetched ]]; then
    echo "prepare has not fetched $bucket" >&2
    exit 1
  fi
  rm -f "$code"
  setsid "$here/launch/worker.sh" run ${bucket:+"$bucket"} -- "$@" >>"$log" 2>&1 </dev/null &
  echo $! >"$pid"
}

stop() {
  if ! running; then return; fi
  kill -TERM "$(cat "$pid")"
  for ((i = 0; i < 60; i++)); do
    if ! running; then return; fi
    sleep 1
  done
  kill -KILL -- "-$(cat "$pid")"
}

# running, ended CODE, or none.
state() {
  if running; then
    echo running
  elif [[ -e $code ]]; then
    echo "ended $(cat "$code")"
  else
    echo none
  fi
}

(($#)) || set -- help
command=$1 bucket=''
shift
if (($#)) && [[ $1 == gs://* ]]; then
  bucket=${1%/}
  shift
fi
if (($#)) && [[ $1 == -- ]]; then shift; fi
case $command in
  prepare | stop | state) "$command" ;;
  start | run) "$command" "$@" ;;
  *)
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
