#!/usr/bin/env bash
# Lint, types and tests, in a virtual environment of their own. Arguments go to pytest:
#   bash launch/test.sh                  everything
#   bash launch/test.sh -m "not slow"    what takes seconds
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install_checkout "[test]"
cd "$root"
case "$*" in
  *"not slow"*) ;;
  # What tests/test_sglang_live.py and tests/test_sglang_jax_live.py start, while the first tests run.
  *) {
    bash launch/serve_sglang.sh --install
    bash launch/test_sglang_jax.sh --install
  } > "$venv/sglang.log" 2>&1 & ;;
esac
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy"
# Files side by side, two at a time: more would want more memory than they save time.
exec "$venv/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
