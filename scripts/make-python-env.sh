#!/usr/bin/env bash
# Makes the Python environment in which the tests load our output with programs that we did not write:
#
#   scripts/make-python-env.sh target/python-env
#   PRUNECTL_TEST_PYTHON=$PWD/target/python-env/bin/python cargo test --release
#
# With `--llama-cpp` behind the folder llama-cpp-python is built from its source too, which takes minutes.
# PYTHON names the interpreter to start from (3.10 or later), PIP_INDEX_URL and the like are obeyed.
set -euo pipefail

folder=${1:-target/python-env}
python=${PYTHON:-python3}

"$python" - <<'CHECK'
import sys
if sys.version_info < (3, 10):
    sys.exit(f"Python 3.10 or later is needed, this is {sys.version.split()[0]}; set PYTHON to another interpreter")
CHECK

"$python" -m venv "$folder"
# The versions that the loader table (crates/run/src/stock.rs) was tried with.
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
    'torch==2.15.0' 'transformers==5.23.0' 'safetensors==0.8.0' 'peft==0.21.2' 'numpy>=1.26'

if [ "${2:-}" = --llama-cpp ]; then
    CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF" \
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-binary llama-cpp-python 'llama-cpp-python==0.3.36'
fi

"$folder/bin/python" - <<'CHECK'
import peft, safetensors, torch, transformers
versions = ", ".join(f"{m.__name__} {m.__version__}" for m in (torch, transformers, peft, safetensors))
print(versions)
CHECK
echo "PRUNECTL_TEST_PYTHON=$(cd "$folder" && pwd)/bin/python"
