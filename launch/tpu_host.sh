#!/usr/bin/env bash
# Runs on every VM of a TPU: as root, at every boot, and again whenever `launch/tpu.py run` asks for it.
# It prepares the VM for the job in the bucket, and starts the run as a systemd unit. What is already
# done is not done again. Google gives it as the metadata "startup-script"; nobody needs to log in.
#   ATGRPO_ROOT    a folder instead of / (for tests)
#   ATGRPO_EVERY   seconds between two reports to the bucket (default: 30)
set -euo pipefail
root="${ATGRPO_ROOT:-}"
base="$root/opt/atgrpo"
units="$root/run/systemd/system" # gone after a reboot, so that this script decides what starts
export HOME="${HOME:-/root}" DEBIAN_FRONTEND=noninteractive CLOUDSDK_CONFIG="$base/gcloud"
export PATH="$PATH:/snap/bin" # where images of Ubuntu have gcloud

# metadata KEY: prints what `queued-resources create` was given for this machine.
metadata() {
  curl -fsS --retry 5 --max-time 10 -H "Metadata-Flavor: Google" \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

# field KEY [FILE]: prints a field of the job file, or of another one, an element a line.
field() {
  python3 -c 'import json, sys
value = json.load(open(sys.argv[1]))[sys.argv[2]]
print(*value, sep="\n") if isinstance(value, list) else print(value)' "$base/${2:-job.json}" "$1"
}

# fetch OBJECT FILE: copies an object of this job. It tries three times, and leaves what gcloud said in $said.
fetch() {
  local try
  for try in 1 2 3; do
    said="$(gcloud storage cp "$folder/$1" "$2" --quiet 2>&1)" && return
    if grep -qi "matched no objects\|not found" <<< "$said"; then break; fi
    sleep "$((try * ${ATGRPO_PAUSE:-5}))"
  done
  return 1
}

# on_vm ARGUMENTS: see launch/tpu/on_vm.py.
on_vm() { python3 "$code/launch/tpu/on_vm.py" "$base" "$@"; }

# fail LINE: tells people what is wrong, in the log and in the bucket.
fail() {
  echo "error: $1"
  if [ -n "${code:-}" ] && [ -e "$base/vm.json" ]; then on_vm phase "setup failed" "error: $1"; fi
  exit 1
}

get_job() {
  local host attempt endpoints
  folder="$(metadata atgrpo-folder)"
  attempt="$(metadata atgrpo-attempt)"
  fetch job.json "$base/job.json" || fail "cannot read $folder/job.json: ${said##*$'\n'}"
  # Which VM this is, and the addresses of all. One VM alone may have neither.
  if ! { host="$(metadata agent-worker-number)" && endpoints="$(metadata worker-network-endpoints)"; }; then
    [ "$(field vms)" -eq 1 ] || fail "the metadata server does not say which VMs this machine has"
    host=0
    endpoints=""
  fi
  digest="$(field code)"
  place="$base/$digest"
  code="$place/code"
  printf '{"host": %d, "attempt": %d, "python": "%s", "endpoints": "%s"}\n' \
    "$host" "$attempt" "$place/venv/bin/python" "$endpoints" > "$base/vm.json"
}

get_code() {
  if [ ! -e "$place/unpacked" ]; then
    fetch "code-$digest.tar.gz" "$base/code.tar.gz" ||
      fail "cannot read $folder/code-$digest.tar.gz: ${said##*$'\n'}"
    mkdir -p "$code"
    tar -xzf "$base/code.tar.gz" -C "$code"
    touch "$place/unpacked"
  fi
}

# The reports begin before the long installation does.
start_reports() {
  mkdir -p "$units"
  cat > "$units/atgrpo-report.service" << UNIT
[Unit]
Description=copies what atgrpo does to the bucket
[Service]
Environment=PATH=/usr/local/bin:/usr/bin:/bin:/snap/bin CLOUDSDK_CONFIG=$base/gcloud
ExecStart=$(command -v python3) $code/launch/tpu/on_vm.py $base report ${ATGRPO_EVERY:-30}
Restart=always
RestartSec=10
TimeoutStopSec=25
UNIT
  systemctl daemon-reload
  systemctl restart atgrpo-report
}

get_uv() {
  export PATH="$base/bin:$PATH" UV_PYTHON_INSTALL_DIR="$base/python" UV_CACHE_DIR="$base/cache"
  if [ ! -x "$base/bin/uv" ]; then
    curl -fsSL --retry 3 --max-time 120 https://astral.sh/uv/install.sh -o "$base/uv.sh" ||
      fail "no network: uv could not be fetched; leave out --internal-ips, or give the subnetwork Cloud NAT"
    UV_INSTALL_DIR="$base/bin" UV_NO_MODIFY_PATH=1 sh "$base/uv.sh" || fail "uv could not be installed"
  fi
}

# install [FLAGS]: installs the code with its extras.
install() {
  uv pip install --quiet --python "$place/venv/bin/python" "$@" --editable "${code}[$(field extras)]"
}

# All VMs and all restarts have the same versions: the first VM that installs writes them to the bucket.
get_packages() {
  local constraints="$base/constraints.txt"
  if [ -e "$place/installed" ]; then return; fi
  echo "installing the code $digest; $(df -h --output=avail "$base" | tail -n 1 | tr -d ' ') of disk are free"
  [ -x "$place/venv/bin/python" ] || uv venv --quiet --python 3.12 "$place/venv" ||
    fail "no Python 3.12 by uv; the line above says why"
  if ! fetch constraints.txt "$constraints"; then
    install || fail "the packages could not be installed; the lines above say why"
    uv pip freeze --python "$place/venv/bin/python" --exclude-editable > "$constraints.mine"
    # Only if no other VM was faster.
    gcloud storage cp "$constraints.mine" "$folder/constraints.txt" --if-generation-match=0 --quiet || true
    fetch constraints.txt "$constraints" ||
      fail "cannot write $folder/constraints.txt: ${said##*$'\n'}"
  fi
  install --constraints "$constraints" ||
    fail "the packages do not fit $folder/constraints.txt; remove it to let the versions be chosen again"
  touch "$place/installed"
}

# gs://BUCKET/FOLDER/NAME becomes models/NAME. The file models/.NAME says of which address it is a whole copy.
get_models() {
  local model name
  local -A from=()
  mkdir -p "$base/models"
  ln -sfn "$base/models" "$code/models"
  while IFS= read -r model; do
    while [[ "$model" == */ ]]; do model="${model%/}"; done
    if [ -z "$model" ]; then continue; fi
    name="${model##*/}"
    if [ -n "${from[$name]:-}" ] && [ "${from[$name]}" != "$model" ]; then
      fail "${from[$name]} and $model would both be models/$name: give one of them another last name"
    fi
    from[$name]="$model"
    if grep -qsxF -e "$model" "$base/models/.$name"; then continue; fi
    echo "copying $model"
    rm -rf "$base/models/.$name" "${base:?}/models/$name" # of another address, or not whole
    gcloud storage cp --recursive --quiet "$model" "$base/models" < /dev/null || fail "cannot copy $model to local disk"
    echo "$model" > "$base/models/.$name"
  done <<< "$(field models)"
}

# The strongest level of the sandbox needs it; a run says which level it has (docs/sandbox.md).
get_bubblewrap() {
  command -v bwrap > /dev/null ||
    { apt-get -o DPkg::Lock::Timeout=120 update -qq && apt-get -o DPkg::Lock::Timeout=120 install -y -qq bubblewrap; } ||
    echo "no bubblewrap: the sandbox takes its next level"
}

# get_newest: reads the job file once more. What is prepared stays that of job.json; what counts is what is
# wanted now, since preparing takes minutes, in which a `stop` may have come.
get_newest() { fetch job.json "$base/newest.json"; }

# 0 is done, 2 is for people, 143 was stopped: all else starts again.
start_run() {
  id atgrpo > /dev/null 2>&1 || useradd --system --create-home --home-dir "$base/home" atgrpo
  mkdir -p "$base/home"
  chown -R atgrpo "$place/code" "$base/home"
  cat > "$units/atgrpo.service" << UNIT
[Unit]
Description=atgrpo trains
StartLimitIntervalSec=0
[Service]
User=atgrpo
WorkingDirectory=$code
Environment=HOME=$base/home PYTHONUNBUFFERED=1 TPU_LOG_DIR=$base/home/tpu_logs
Environment=PATH=$place/venv/bin:/usr/local/bin:/usr/bin:/bin:/snap/bin CLOUDSDK_CONFIG=$base/gcloud
ExecStartPre=+$(command -v python3) $code/launch/tpu/on_vm.py $base before $root/tmp/libtpu_lockfile $root/dev/(accel|vfio/)[0-9]+
ExecStart=$(command -v python3) $code/launch/tpu/on_vm.py $base train
ExecStopPost=+$(command -v python3) $code/launch/tpu/on_vm.py $base ended
StandardOutput=append:$base/log.txt
StandardError=append:$base/log.txt
Restart=on-failure
RestartPreventExitStatus=2 143
RestartSec=10
KillSignal=SIGTERM
KillMode=mixed
TimeoutStopSec=25
LimitMEMLOCK=infinity
LimitNOFILE=1048576
UNIT
  systemctl daemon-reload
  get_newest || fail "cannot read $folder/job.json: ${said##*$'\n'}"
  if ! on_vm mayrun; then return; fi
  systemctl restart atgrpo
  # A `stop` that came between the look and the start has found no run to stop.
  get_newest || echo "cannot read $folder/job.json once more, so a stop just now has no effect: ${said##*$'\n'}"
  if [ "$(field wanted newest.json)" = stop ]; then systemctl stop atgrpo; fi
}

main() {
  get_job
  get_code
  start_reports
  on_vm phase setup
  get_uv
  get_packages
  get_models
  get_bubblewrap
  start_run
}

mkdir -p "$base"
if ! [ "$0" -ef "$base/host.sh" ]; then cp "$0" "$base/host.sh"; fi # for `launch/tpu.py run`
# One at a time: a boot and `run` may both call it.
exec 9> "$base/lock"
flock 9
exec >> "$base/log.txt" 2>&1
trap 'fail "tpu_host.sh stopped in line $LINENO"' ERR
set -E
main
