#!/usr/bin/env bash
# Trains on this machine. It makes a virtual environment, installs the checkout, and runs
#   python -m atgrpo_jax.train "$@"
# Example: bash launch/local.sh --gin_file=plan.gin
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install_checkout ""
exec "$venv/bin/python" -m atgrpo_jax.train "$@"
