#!/usr/bin/env bash
# Starts an SGLang server in a virtual environment of its own, which it makes the first time:
#   bash launch/serve_sglang.sh --model-path FOLDER --port 30000 [...]     what sglang.launch_server takes
#   bash launch/serve_sglang.sh --install                                  the environment only
# Without an NVIDIA GPU it serves from the CPU, slowly: for trying out, and for tests.
#   ATGRPO_SGLANG_VENV  where the environment lives (default: .venv-sglang in the checkout)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
venv="${ATGRPO_SGLANG_VENV:-$root/.venv-sglang}"
version=0.5.23

install() {
  local python pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
  [ -e "$venv/.complete-$version" ] && return
  python="$(find_python)"
  echo "installing sglang $version in $venv; some minutes the first time" >&2
  "$python" -m venv "$venv"
  if [ -n "$gpu" ]; then
    "${pip[@]}" "sglang==$version"
  else
    # What sglang asks for is gigabytes of CUDA, which a CPU never touches.
    "${pip[@]}" torch==2.13.0
    "${pip[@]}" -r "$root/launch/sglang_cpu.txt"
    "${pip[@]}" --no-deps "sglang==$version" torchvision==0.28.0 xgrammar==0.2.7
  fi
  touch "$venv/.complete-$version"
}

gpu="$(command -v nvidia-smi || true)"
mkdir -p "$venv"
unset PYTHONDONTWRITEBYTECODE # a start would compile hundreds of modules
{
  flock 9
  install >&2 9>&-
} 9> "$venv/.lock"
if [ "${1:-}" = --install ]; then
  exit
fi
flags=()
if [ -z "$gpu" ]; then
  export SGLANG_USE_CPU_ENGINE=1 PYTHONPATH="$root/tests/sglang_cpu" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
  flags=(--device cpu --attention-backend torch_native --sampling-backend pytorch --grammar-backend none
    --lora-backend torch_native --cuda-graph-backend-decode disabled --cuda-graph-backend-prefill disabled
    --max-total-tokens 32768 --max-running-requests 64 --sleep-on-idle)
fi
export HF_HUB_OFFLINE=1
exec "$venv/bin/python" -m sglang.launch_server --skip-server-warmup --skip-tokenizer-init "${flags[@]}" "$@"
