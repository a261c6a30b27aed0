#!/usr/bin/env bash
# Times one SDCLR step of ResNet-18 on 32x32 images beside PyTorch, interleaved: JSON lines on stdout.
# Usage: benches/step_vs_torch.sh PEER.py [ROUNDS] [BATCH]
#   PEER.py prints a JSON line with samples_per_s and takes --mode fp32|bf16 --batch-size --steps. PYTHON and SDCLR name the programs.
set -euo pipefail
peer=$1
rounds=${2:-3}
batch=${3:-128}
python=${PYTHON:-python3}
sdclr=${SDCLR:-target/release/sdclr}
for round in $(seq "$rounds"); do
  for precision in f32 bf16; do
    "$sdclr" bench step --json --model resnet18 --image-size 32 --batch-size "$batch" --steps 3 --precision "$precision" |
      tr -d '\n' | sed 's/  */ /g'
    echo
    mode=$([ "$precision" = f32 ] && echo fp32 || echo bf16)
    "$python" "$peer" --mode "$mode" --batch-size "$batch" --steps 3
  done
done
