#!/usr/bin/env bash
# Private training on a GPU, measured in one command of at most 8 minutes (benchmarks/gpu.py):
#
#   benchmarks/gpu.sh [--minutes 8] [--tiny] [section ...]
#
# The environment is PYTHON if it is set; else a python3 that has torch; else .venv (`make env`).
# A machine without a network gets what its python3 lacks from a folder of wheels, WHEELS, which is
# filled elsewhere, for its Python and platform, with one version of each package:
#
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#     --platform manylinux_2_34_x86_64 --platform manylinux_2_28_x86_64 \
#     --platform manylinux2014_x86_64 -d wheels -c constraints.txt diffusers opacus dp-accounting \
#     dm-tree pydantic pydantic-core annotated-types typing-inspection typing-extensions \
#     cryptography cffi pycparser nibabel importlib-metadata lazy-importer
#
# With OUT set to a folder, the tables are left there too: gpu.md and gpu.json.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-}
if [ -z "$python" ]; then
    if python3 -c 'import torch' 2>/dev/null; then
        python=python3
    else
        make --silent env
        python=.venv/bin/python
    fi
fi
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
"$python" -u benchmarks/gpu.py "$@"
