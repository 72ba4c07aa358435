#!/usr/bin/env bash
# Trains on this machine as several hosts would together: N processes make one run. It is for trying.
#   bash launch/hosts.sh 2 --gin_file=smoke.gin --gin_param="mesh.MeshConfig.data = 2"
#   bash launch/hosts.sh 2 probe --only_rounds    tries whether several hosts can work together (docs/probe.md)
# On real hosts each one starts its own process, with the same arguments but for --host (docs/hosts.md):
#   python -m atgrpo_jax.train --hosts=2 --host=0 --coordinator=ADDRESS_OF_HOST_0:PORT ARGS
#   python -m atgrpo_jax.train --hosts=2 --host=1 --coordinator=ADDRESS_OF_HOST_0:PORT ARGS
# NVIDIA GPUs are dealt out evenly. Without any, or with JAX_PLATFORMS=cpu, each process has CPU devices.
# Ctrl-C and SIGTERM reach all processes. The exit code is 2 if one of them says so, else the first one
# above 0 (143 after a stop), else 0.
#   ATGRPO_GRACE  seconds after the first death, after which what is left is killed (default: 120)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

fail() {
  echo "error: $1" >&2
  exit 2
}

[[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || fail "call it as: bash launch/hosts.sh N [probe] [--] ARGS, with a number of hosts"
n="$1"
shift
module=atgrpo_jax.train
if [ "${1:-}" = probe ]; then
  module=atgrpo_jax.tools.probe
  shift
fi
if [ "${1:-}" = -- ]; then shift; fi

# gpus: prints the numbers or names of the GPUs that may be used, a line each.
gpus() {
  if [ "${JAX_PLATFORMS:-}" = cpu ] || ! command -v nvidia-smi > /dev/null; then return; fi
  case "${CUDA_VISIBLE_DEVICES-all}" in
    all) nvidia-smi --query-gpu=index --format=csv,noheader ;;
    "" | -*) ;; # none, as CUDA has it
    *) tr ',' '\n' <<< "$CUDA_VISIBLE_DEVICES" ;;
  esac
}

listed="$(gpus)" || fail "nvidia-smi does not answer (${listed##*$'\n'}); JAX_PLATFORMS=cpu does without GPUs"
mapfile -t found <<< "$listed"
if [ -z "$listed" ]; then
  export JAX_PLATFORMS=cpu
  share=0
  extras=""
else
  [ "$((${#found[@]} % n))" -eq 0 ] || fail "${#found[@]} GPUs cannot be dealt out evenly to $n hosts"
  share=$((${#found[@]} / n))
  extras="[gpu]"
fi
install_checkout "$extras"
port="$("$venv/bin/python" -c 'import socket
with socket.socket() as one:
    one.bind(("localhost", 0))
    print(one.getsockname()[1])')"

# start HOST ARGS: becomes the process of a host, in a session of its own: Ctrl-C reaches this script alone.
start() {
  local host="$1" mine
  if [ "$share" -gt 0 ]; then
    mine="${found[*]:$((host * share)):$share}"
    export CUDA_VISIBLE_DEVICES="${mine// /,}"
  fi
  exec setsid "$venv/bin/python" -m "$module" \
    "--hosts=$n" "--host=$host" "--coordinator=localhost:$port" "${@:2}" < /dev/null
}

# One signal each: a second one would end a run at once.
pids=()
trap 'kill -TERM "${pids[@]}" 2> /dev/null || true' INT TERM HUP
for ((host = 0; host < n; host++)); do
  if [ "$host" -eq 0 ]; then
    start 0 "$@" &
  else
    start "$host" "$@" > >(exec sed -u "s/^/[host $host] /") 2>&1 &
  fi
  pids+=($!)
done

# When one dies, the others notice it and end by themselves.
codes=()
result=0
deadline=""
while [ "${#codes[@]}" -lt "$n" ]; do
  sleep 0.1 || true
  for ((host = 0; host < n; host++)); do
    if [ -n "${codes[host]:-}" ] || kill -0 "${pids[host]}" 2> /dev/null; then continue; fi
    codes[host]=0
    wait "${pids[host]}" || codes[host]=$?
    if [ "$result" -eq 0 ] || [ "${codes[host]}" -eq 2 ]; then result="${codes[host]}"; fi
    if [ "$result" -gt 0 ]; then deadline="${deadline:-$((SECONDS + ${ATGRPO_GRACE:-120}))}"; fi
  done
  if [ "$SECONDS" -gt "${deadline:-$SECONDS}" ]; then
    for host in "${!pids[@]}"; do
      if [ -n "${codes[host]:-}" ]; then continue; fi
      echo "[host $host] did not end by itself, and is killed" >&2
      kill -KILL -- "-${pids[host]}" 2> /dev/null || true
    done
    deadline=$((SECONDS + 1))
  fi
done
exit "$result"
