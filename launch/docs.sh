#!/usr/bin/env bash
# Builds the documentation site of this checkout, or looks at links. Warnings are errors.
#   bash launch/docs.sh                  builds it in build/site; open index.html there
#   bash launch/docs.sh --out=FOLDER     builds it in another folder
#   bash launch/docs.sh --serve[=PORT]   builds it, and serves it at http://localhost:8000 or that port
#   bash launch/docs.sh --links          lists links to other places, and those that lead nowhere
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
out="$root/build/site" port="" links=""
for word in "$@"; do
  case "$word" in
    --out=?*) out="${word#*=}" ;;
    --serve) port=8000 ;;
    --serve=?*) port="${word#*=}" ;;
    --links) links=1 ;;
    *)
      echo "error: ${word@Q} is none of --out=FOLDER, --serve, --serve=PORT and --links" >&2
      exit 2
      ;;
  esac
done
install_checkout "[docs]"
if [ -n "$links" ]; then
  exec "$venv/bin/python" "$root/docs/site/links.py"
fi
# What Sphinx keeps of pages is not used again: pages of the reference depend on the code.
kept="$(mktemp -d)"
trap 'rm -rf "$kept"' EXIT
"$venv/bin/python" -m sphinx --quiet --fail-on-warning --keep-going --conf-dir "$root/docs/site" \
  --doctree-dir "$kept" "$root" "$out"
echo "$out/index.html"
if [ -n "$port" ]; then
  "$venv/bin/python" -m http.server --bind localhost --directory "$out" "$port"
fi
