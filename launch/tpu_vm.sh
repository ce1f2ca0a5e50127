#!/usr/bin/env bash
# Runs jdkd on a single-host TPU VM: creates it, copies the last commit, installs, starts.
#
#   launch/tpu_vm.sh NAME ZONE [TYPE] [-- ARGUMENTS OF jdkd.main]
#   launch/tpu_vm.sh jdkd-a us-west4-a v5litepod-8 -- --config configs/mta4dpr.py --workdir runs/a
#
# The run goes on in tmux session `jdkd` on the VM when you hang up. Started again with the same
# arguments, it finds the VM and the run goes on where it was. Needs an authenticated gcloud;
# delete the VM with: gcloud compute tpus tpu-vm delete NAME --zone ZONE
set -euo pipefail

if (($# < 2)); then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1 zone=$2 type=v5litepod-8
shift 2
if (($#)) && [[ $1 != -- ]]; then
  type=$1
  shift
fi
if (($#)) && [[ $1 == -- ]]; then shift; fi
(($#)) || set -- --config configs/mta4dpr.py

case $type in
  v5litepod-*) version=v2-alpha-tpuv5-lite ;;
  v5p-*) version=v2-alpha-tpuv5 ;;
  v6e-*) version=v2-alpha-tpuv6e ;;
  *) version=tpu-ubuntu2204-base ;;
esac

tpu() {
  gcloud compute tpus tpu-vm "$1" "$name" --zone "$zone" "${@:2}"
}

if ! tpu describe >/dev/null 2>&1; then
  tpu create --accelerator-type "$type" --version "$version"
fi
cd "$(dirname "$0")/.."
# Not `scp --recurse .`: that would copy runs and environments too.
git archive --format=tar HEAD | tpu ssh --command 'mkdir -p jdkd && tar -x -C jdkd'
# The image's own Python is too old; uv brings one.
tpu ssh --command "cd jdkd && pip install --quiet --user uv &&
  python3 -m uv venv --quiet --allow-existing --python 3.12 ../jdkd-env &&
  python3 -m uv pip install --quiet --python ../jdkd-env/bin/python -e '.[tpu]'"
tpu ssh --command "cd jdkd && tmux has-session -t jdkd 2>/dev/null || tmux new-session -d -s jdkd \
  $(printf '%q' "../jdkd-env/bin/python -m jdkd.main$(printf ' %q' "$@") 2>&1 | tee -a run.log")"
tpu ssh --command 'tail -n +1 -F jdkd/run.log'
