#!/usr/bin/env bash
# Runs the tests of engines/sglang_jax/ with sglang-jax itself, on a CPU. They have a virtual environment of
# their own with a Python 3.12 or 3.13, which is made the first time. They take about two minutes on 2 cores,
# and 2 GB of disk.
#   bash launch/test_sglang_jax.sh [...]        arguments go to pytest
#   bash launch/test_sglang_jax.sh --install    makes the environment only
#   ATGRPO_SGLANG_JAX_VENV  the folder of the environment (default: .venv-sglang-jax in the checkout)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
venv="${ATGRPO_SGLANG_JAX_VENV:-$root/.venv-sglang-jax}"

install() {
  local python stamp
  stamp="$root $(cksum < "$root/setup.py")"
  if grep -qsF "$stamp" "$venv/.atgrpo"; then
    return
  fi
  python="$(find_python "3, 12" "3, 14")"
  make_venv "$python"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv
  # It uses uv, because pip takes minutes for so many packages.
  "$venv/bin/python" -m uv pip install --quiet --python "$venv/bin/python" -e "${root}[sglang-cpu]" 'pytest>=8'
  echo "$stamp" > "$venv/.atgrpo"
}

# Without compiled files each start of Python would compile hundreds of modules again.
unset PYTHONDONTWRITEBYTECODE
one_at_a_time "$venv" install
if [ "${1:-}" = --install ]; then
  exit
fi
cd "$root"
# sglang-jax fixes the versions of anyio's plugin and flax. These use names that pytest and JAX call old.
# Output is not captured (-s): what C++ writes before it aborts would be lost with the process.
ATGRPO_SGLANG_JAX=1 JAX_PLATFORMS=cpu exec "$venv/bin/python" -m pytest -s -p no:anyio \
  -W "ignore:jax.core.get_opaque_trace_state:DeprecationWarning" tests/test_sglang_jax.py \
  tests/test_sglang_jax_engine.py "$@"
