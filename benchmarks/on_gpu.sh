#!/usr/bin/env bash
# Everything that is to be known on a GPU, in one go: correctness first, then the step's speed against
# torch. Pass a folder for the raw results; versions, date and medians belong into RESULTS.md.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-.}
export PYTHONPATH=. PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export XLA_PYTHON_CLIENT_PREALLOCATE=false # several processes share the device

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
python3 benchmarks/device_check.py
step() { python3 benchmarks/pretrain_step.py --dtype bfloat16 --rounds 5 --seconds 1.5 \
    --output "$out/pretrain_step.jsonl" "$@"; }
step --size base --length 128 --batch-size 256 --scan-unroll 0 --scan-unroll 1
step --size base --length 512 --batch-size 64 --scan-unroll 0 --scan-unroll 1
step --size large --length 128 --batch-size 128 --scan-unroll 0 --scan-unroll 1
step --size large --length 512 --batch-size 32 --scan-unroll 0 --scan-unroll 1

# Pipelines and fine-tuning steps of the model directory that MODEL names (MiniLM's, say), on the texts
# and questions of the tests; left out where none is named.
model=${MODEL:-}
if [ -n "$model" ]; then
    python3 benchmarks/inference.py --model "$model" --dtype bfloat16 --output "$out/inference.jsonl"
    python3 benchmarks/finetune_step.py --init-from "$model" --max-widths 3 --output "$out/finetune_step.jsonl"
fi

# Writing on: greedy and with 4 beams.
python3 benchmarks/generate.py --size base --dtype bfloat16 --output "$out/generate.jsonl"
