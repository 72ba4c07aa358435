#!/usr/bin/env bash
# What one GPU does with a model of Qwen3-0.6B's shape, against its limits, in at most ten minutes.
#
#   bash benchmarks/gpu.sh FOLDER [PEERS]
#
# FOLDER gets what is printed (lines.txt), traces for TensorBoard or Perfetto (FOLDER/trace/...), and the page of the
# probe. PEERS are environments that benchmarks/peers/setup.sh has made on this machine, for its GPU: TRL's
# update and vLLM's decoding then run on the same items, beyond the ten minutes. PYTHON names another Python.
set -u
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
out=${1:?"give a folder for what is found: bash benchmarks/gpu.sh FOLDER"}
mkdir -p "$out"
failed=0

# A part that fails or takes too long is named, and the others go on.
part() {
    local seconds=$1
    shift
    echo "\$ $*" >&2
    timeout "$seconds" "$@" | tee -a "$out/lines.txt"
    local code=${PIPESTATUS[0]}
    if [ "$code" != 0 ]; then
        echo "error: exit code $code (124: it took more than $seconds s): $*" >&2
        failed=1
    fi
}

: > "$out/lines.txt"
# Rows of 16,384 tokens: a prompt of 8,192 and 8 answers of 1,024. All 28 layers, bfloat16.
part 200 "$python" "$here/update.py" --item=qwen3-0.6b --prompts=4 --prompt_tokens=8192 --new_tokens=1024 \
    --rows=1 --warmup=2 --steps=3 --trace="$out/trace/update"
part 120 "$python" "$here/update.py" --item=qwen3-0.6b --prompts=8 --warmup=2 --steps=3
part 110 "$python" "$here/rollout.py" --item=qwen3-0.6b --prompts=8 --new_tokens=256 --warmup=1 --steps=2 \
    --trace="$out/trace/rollout"
part 110 "$python" "$here/rollout.py" --item=qwen3-0.6b --prompts=64 --new_tokens=256 --slots=512 --warmup=1 --steps=2
part 60 "$python" -m atgrpo_jax.tools.probe --size=tiny --out="$out/probe"
if [ $# -gt 1 ]; then
    part 1200 "$python" "$here/peers/run.py" --environments="$2" --item=qwen3-0.6b --peers=trl --warmup=1 --steps=3
    part 1200 "$python" "$here/peers/run.py" --environments="$2" --rollout --item=qwen3-0.6b --peers=vllm \
        --warmup=1 --steps=2
fi
exit $failed
