#!/usr/bin/env bash
# Runs lint, types and tests, in a virtual environment of their own.
#   bash launch/test.sh                       tests that take seconds each; about ten minutes on 2 cores
#   bash launch/test.sh --all                 all tests: whole runs, real servers, kills; CI runs most of it
#   bash launch/test.sh tests/test_loss.py    arguments go to pytest
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install_checkout "[test]"
cd "$root"
case "${1:-}" in
  "") set -- -m "not slow and not thorough" ;;
  --all)
    shift
    # tests/test_sglang_live.py, test_sglang_run.py and test_sglang_jax_live.py need these. The first
    # tests run meanwhile.
    {
      bash launch/serve_sglang.sh --install
      bash launch/test_sglang_jax.sh --install
    } > "$venv/sglang.log" 2>&1 &
    ;;
esac
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy"
# Two files run at the same time. More would cost more memory than they save time.
exec "$venv/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
