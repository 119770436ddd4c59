#!/bin/sh
# Runs every example with the Python given (default: python3); fails if one fails. Offline, under 90 s on two cores.
set -u
python=${1:-python3}
folder=$(dirname "$0")
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1  # the models are too small for more
export PYTHONWARNINGS='ignore:`is_gradient_checkpointing` is deprecated:FutureWarning'  # said by transformers to PEFT
failed=""
for example in "$folder"/*.py "$folder"/flower/run.py; do
    echo "== $(basename "$example")"
    "$python" "$example" || failed="$failed $(basename "$example")"
done
if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
