#!/usr/bin/env bash
# What a GPU does: accuracy in float32 against float64 on the CPU, then time, products and memory of
# central steps at full size. Run it where `.[cuda,test]` is installed; tables go to OUT.
#
#     PYTHON=.venv/bin/python benchmarks/gpu.sh OUT [SECONDS]
#
# Every part ends after SECONDS (240), so that the whole fits twelve minutes.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python} out=${1:?usage: benchmarks/gpu.sh OUT [SECONDS]} limit=${2:-240}
mkdir -p "$out"
{
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
    "$python" -c "import jax; print(jax.__version__, *{d.device_kind for d in jax.devices()})"
} | tee "$out/device.txt"
run() {
    echo "== $1" | tee "$out/$1.md"
    timeout "$limit" "$python" -m "${@:2}" | tee -a "$out/$1.md"
    echo "exit code ${PIPESTATUS[0]}" | tee -a "$out/$1.md"
}
run accuracy benchmarks.precision
run steps benchmarks.full_size --steps 3 specs/digits_gd.yaml specs/full_size/*.yaml
run scale benchmarks.scale --real --devices 1
