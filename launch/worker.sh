#!/usr/bin/env bash
# Runs on each worker of a TPU VM, in its copy of this repository; launch/tpu_vm.sh calls it.
#
#   launch/worker.sh prepare [gs://BUCKET/PATH]         installs and shares the workdir
#   launch/worker.sh start [gs://BUCKET/PATH] -- ARGUMENTS OF jdkd.main
#   launch/worker.sh stop | state
#
# The workdir is WORKDIR, a directory on worker 0 that the other workers mount over NFS. Given a
# bucket, that is the workdir, and jdkd's cache is in WORKDIR.
set -euo pipefail

home=${JDKD_HOME:-$HOME/jdkd-vm}
workdir=${WORKDIR:-/mnt/jdkd}
python=$home/env/bin/python
log=$home/run.log pid=$home/pid code=$home/code
here=$(cd "$(dirname "$0")/.." && pwd)

# Reads an attribute of the TPU VM from the metadata server, as JAX does.
metadata() {
  curl -sf -H 'Metadata-Flavor: Google' \
    "http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes/$1"
}
worker=$(metadata agent-worker-number)
IFS=, read -ra endpoints <<<"$(metadata worker-network-endpoints)"
first=${endpoints[0]##*:}  # An endpoint is name:id:address, or just an address.

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
  # The image's Python is too old; uv installs a newer one.
  python3 -m uv venv --quiet --allow-existing --python 3.12 "$home/env"
  share
  install
}

# Versions of libraries decide the bits of results: a run keeps those that it began with.
install() {
  local pinned=$workdir/requirements.lock constraint=() found
  if ((worker == 0)) && [[ -n $bucket ]]; then
    if found=$(gcloud storage ls "$bucket/requirements.lock" 2>&1); then
      gcloud storage cp --quiet "$bucket/requirements.lock" "$pinned"
    elif [[ $found != *'matched no objects'* ]]; then
      echo "$bucket cannot be read: $found" >&2
      exit 1
    fi
  fi
  if [[ -e $pinned ]]; then constraint=(--constraint "$pinned"); fi
  python3 -m uv pip install --quiet --python "$python" -e "${here}[tpu${bucket:+,gcs}]" \
    "${constraint[@]}"
  if ((worker == 0)) && [[ ! -e $pinned ]]; then
    python3 -m uv pip freeze --python "$python" --exclude-editable >"$pinned.tmp"
    mv "$pinned.tmp" "$pinned"
    if [[ -n $bucket ]]; then
      gcloud storage cp --quiet "$pinned" "$bucket/requirements.lock"
    fi
  fi
}

running() {
  [[ -e $pid ]] && kill -0 "$(cat "$pid")" 2>/dev/null
}

# Runs jdkd to its end and records the exit code. Forwards SIGTERM, on which jdkd saves.
run() {
  local ended child
  cd "$here"
  JDKD_CACHE=$workdir "$python" -m jdkd.main "$@" --workdir "${bucket:-$workdir}" </dev/null &
  child=$!
  trap 'kill -TERM "$child"' TERM
  while true; do
    ended=0
    wait "$child" || ended=$?
    if ! kill -0 "$child" 2>/dev/null; then break; fi  # Else the signal was all that ended.
  done
  echo "$ended" >"$code"
}

start() {
  if running; then return; fi
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

# Prints running, ended CODE, or none.
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
