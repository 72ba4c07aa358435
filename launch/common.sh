# Sourced by the other scripts: a virtual environment with this checkout in it.
#   ATGRPO_VENV    where it lives (default: .venv in the checkout)
#   ATGRPO_PYTHON  the Python to make it with, 3.11 or newer (default: the first one found)
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${ATGRPO_VENV:-$root/.venv}"

find_python() {
  local python
  for python in ${ATGRPO_PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  echo "error: no Python >= 3.11 found; set ATGRPO_PYTHON to one" >&2
  return 1
}

# install_checkout EXTRAS: installs in editable mode, unless that was done with the same setup.py.
install_checkout() {
  local extras="$1" python stamp
  stamp="$root $(cksum < "$root/setup.py") "
  if grep -qsF "$stamp$extras" "$venv/.atgrpo"; then
    return
  fi
  if [ ! -x "$venv/bin/python" ]; then
    python="$(find_python)"
    echo "making $venv" >&2
    "$python" -m venv "$venv" || {
      echo "error: could not make $venv (on Debian or Ubuntu: apt install python3-venv)" >&2
      return 1
    }
  fi
  echo "installing atgrpo_jax and what it needs; about a minute the first time" >&2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$root$extras"
  echo "$stamp$extras" >> "$venv/.atgrpo"
}
