#!/usr/bin/env bash
# Starts N jdkd processes on this machine, which share one run.
#
#   launch/local.sh N [-- ARGUMENTS OF jdkd.main]
#   launch/local.sh 2 -- --config configs/mta4dpr.py:tiny --workdir runs/two
#
# Divides the NVIDIA GPUs (all, or CUDA_VISIBLE_DEVICES) evenly among the processes; without GPUs
# they share the CPU. Each line of output starts with its process's number. When one process
# fails, the script stops the others and exits with the same code. It forwards Ctrl-C and SIGTERM to
# the processes as SIGTERM. Set PYTHON to choose the interpreter; the default is `python`.
set -euo pipefail

if (($# < 1)) || ! [[ $1 =~ ^[1-9][0-9]*$ ]] || { (($# > 1)) && [[ $2 != -- ]]; }; then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
count=$1
shift
if (($#)); then shift; fi
python=${PYTHON:-python}
grace=${GRACE_SECONDS:-20}  # From SIGTERM to SIGKILL.

gpus=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true)}
read -ra gpus <<<"${gpus//[$',\n']/ }"
if ((${#gpus[@]} % count)); then
  echo "${#gpus[@]} GPUs cannot be shared out evenly among $count processes; set CUDA_VISIBLE_DEVICES." >&2
  exit 2
fi
each=$((${#gpus[@]} / count))

port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port  # And no other interface.
export TQDM_MININTERVAL=10  # Each turn of a progress bar becomes a line.

pids=()
running() {
  local pid
  for pid in "${pids[@]}"; do if kill -0 "$pid" 2>/dev/null; then echo "$pid"; fi; done
}
stop() {
  local pid left=$((grace * 10))
  for pid in $(running); do kill -TERM "$pid" 2>/dev/null || true; done
  while [[ -n $(running) ]] && ((left-- > 0)); do sleep 0.1; done
  for pid in $(running); do kill -KILL "$pid" 2>/dev/null || true; done
}
trap 'stop; wait; exit 130' INT
trap 'stop; wait; exit 143' TERM

for ((i = 0; i < count; i++)); do
  if ((each)); then
    mine=("${gpus[@]:i * each:each}")
    export CUDA_VISIBLE_DEVICES
    CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${mine[*]}")
  fi
  "$python" -m jdkd.main "$@" --coordinator="127.0.0.1:$port" --num_processes="$count" \
    --process_index="$i" > >(stdbuf -o0 tr '\r' '\n' | sed -u "s/^/[$i] /") 2>&1 </dev/null &
  pids+=($!)
done

code=0
for ((left = count; left > 0; left--)); do
  wait -n -p ended "${pids[@]}" || code=$?
  for i in "${!pids[@]}"; do
    if [[ ${pids[i]} == "$ended" ]]; then
      unset 'pids[i]'
      break
    fi
  done
  if ((code)); then
    if ((left > 1)); then echo "[launch] process $i ended with code $code; stopping the others" >&2; fi
    stop
    break
  fi
done
wait || true
exit "$code"
