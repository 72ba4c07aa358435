# shellcheck shell=bash
# The other scripts source this file. It makes a virtual environment with this checkout in it.
#   ATGRPO_VENV    its folder (default: .venv in the checkout)
#   ATGRPO_PYTHON  the Python that makes it, 3.11 or newer (default: the first one that is found; those
#                  of pyenv are tried, too)
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# Relative ones are of the folder that we were called in: scripts go to other ones, and call each other there.
for given in ATGRPO_VENV ATGRPO_SGLANG_VENV ATGRPO_SGLANG_JAX_VENV; do
  case "${!given:-}" in "" | /*) ;; *) export "$given=$PWD/${!given}" ;; esac
done
case "${ATGRPO_PYTHON:-}" in /*) ;; */*) export ATGRPO_PYTHON="$PWD/$ATGRPO_PYTHON" ;; esac
venv="${ATGRPO_VENV:-$root/.venv}"

# find_python [LEAST BELOW]: prints the first Python with LEAST <= version < BELOW.
find_python() {
  local least="${1:-3, 11}" below="${2:-4, 0}" python pyenv=""
  if command -v pyenv >/dev/null; then pyenv="$(pyenv root)"; fi
  set -- python3 python3.13 python3.12 python3.11 "$pyenv"/versions/3.1[1-9].*/bin/python
  if [ -n "${ATGRPO_PYTHON:-}" ]; then set -- "$ATGRPO_PYTHON"; fi # which may have spaces in it
  for python in "$@"; do
    if "$python" -c "import sys; sys.exit(not ($least) <= sys.version_info < ($below))" 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  echo "error: no Python >= ${least/, /.} and < ${below/, /.} found; set ATGRPO_PYTHON to one" >&2
  return 1
}

# one_at_a_time FOLDER COMMAND [...]: runs the command while no other process does so for the folder.
one_at_a_time() {
  mkdir -p "$1"
  {
    flock 9
    "${@:2}" >&2 9>&-
  } 9> "$1/.lock"
}

# make_venv PYTHON: makes the virtual environment $venv. If that fails, what it has made is removed: the next
# start would take half an environment for a whole one. What was in the folder before is never removed.
make_venv() {
  local there="" before
  if [ -d "$venv" ]; then there=yes; fi
  before="$(find "$venv/" -mindepth 1 ! -name .lock -print -quit 2> /dev/null || true)"
  echo "making $venv" >&2
  if "$1" -m venv "$venv"; then return; fi
  if [ -z "$before" ] && [ -d "$venv" ]; then
    find "$venv/" -mindepth 1 -maxdepth 1 ! -name .lock -exec rm -rf {} +
    if [ -z "$there" ]; then rmdir "$venv"; fi
  fi
  echo "error: could not make $venv (on Debian or Ubuntu: apt install python3-venv)" >&2
  return 1
}

# install_checkout EXTRAS: installs the checkout in editable mode, unless this was done with the same
# setup.py before.
install_checkout() {
  local extras="$1" python stamp
  stamp="$root $(cksum < "$root/setup.py") "
  if grep -qsF "$stamp$extras" "$venv/.atgrpo"; then
    return
  fi
  if [ ! -x "$venv/bin/python" ]; then
    python="$(find_python)" || return
    make_venv "$python" || return
  fi
  if ! "$venv/bin/python" -c "import pip" 2> /dev/null; then
    echo "error: $venv has no pip (it may be half of an environment): remove it, or install pip there, and start again" >&2
    return 1
  fi
  echo "installing atgrpo_jax and what it needs; one to three minutes the first time, without a word" >&2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$root$extras"
  echo "$stamp$extras" >> "$venv/.atgrpo"
}
