#!/usr/bin/env bash
# Starts an SGLang server in a virtual environment of its own. It makes this environment the first time.
#   bash launch/serve_sglang.sh --model-path FOLDER --port 30000 [...]        # arguments as of sglang.launch_server
#   bash launch/serve_sglang.sh --router --worker-urls URL URL --port 30100   # one address for all
#   bash launch/serve_sglang.sh --install                                     # only the environment
# Without an NVIDIA GPU it serves from the CPU and is slow. This is for trials and for tests.
#   ATGRPO_SGLANG_VENV  the folder of the environment (default: .venv-sglang in the checkout)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
venv="${ATGRPO_SGLANG_VENV:-$root/.venv-sglang}"
version=0.5.23
router=sglang-router==0.3.2

install() {
  local python pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
  [ -e "$venv/.complete-$version-${router##*=}" ] && return
  python="$(find_python)"
  echo "installing sglang $version in $venv; some minutes the first time" >&2
  make_venv "$python"
  if [ -n "$gpu" ]; then
    "${pip[@]}" "sglang==$version" "$router"
  else
    # sglang's own requirements are gigabytes of CUDA, which a CPU never uses.
    "${pip[@]}" torch==2.13.0
    "${pip[@]}" -r "$root/launch/sglang_cpu.txt"
    "${pip[@]}" --no-deps "sglang==$version" "$router" torchvision==0.28.0 xgrammar==0.2.7
  fi
  touch "$venv/.complete-$version-${router##*=}"
}

gpu="$(command -v nvidia-smi || true)"
unset PYTHONDONTWRITEBYTECODE # if it is set, each start compiles hundreds of modules again
one_at_a_time "$venv" install
if [ "${1:-}" = --install ]; then
  exit
fi
if [ "${1:-}" = --router ]; then
  # A group repeats its prompt K times, and the router knows one of the K. By default this is too few: the
  # group goes to another server than its prompt did.
  exec "$venv/bin/python" -m sglang_router.launch_router --policy cache_aware --cache-threshold 0.01 "${@:2}"
fi
flags=()
if [ -z "$gpu" ]; then
  export SGLANG_USE_CPU_ENGINE=1 PYTHONPATH="$root/launch/sglang_cpu" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
  flags=(--device cpu --attention-backend torch_native --sampling-backend pytorch --grammar-backend none
    --lora-backend torch_native --cuda-graph-backend-decode disabled --cuda-graph-backend-prefill disabled
    --max-total-tokens 32768 --max-running-requests 64 --sleep-on-idle)
fi
export HF_HUB_OFFLINE=1
exec "$venv/bin/python" -m sglang.launch_server --skip-server-warmup --skip-tokenizer-init "${flags[@]}" "$@"
