#!/usr/bin/env bash
# Everything that needs a GPU, in one run of about twelve minutes: see gpu.py, whose options these are.
#
#   benchmarks/gpu.sh --out runs/gpu
#   benchmarks/gpu.sh --out runs/gpu --skip tests pocket      # some parts only
#   benchmarks/gpu.sh --tiny --out runs/gpu-tiny              # all of it on a CPU, at sizes that take seconds
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 GRADIO_ANALYTICS_ENABLED=False
exec "${PYTHON:-python}" benchmarks/gpu.py "$@"
