#!/usr/bin/env bash
# Times the SDCLR step beside PyTorch, interleaved: a JSON line a pair of precision and PyTorch mode on stdout, whose field `against` has
# both sides' rates of every round and the ratio of their medians.
# Usage: benches/step_vs_torch.sh PEER.py [ROUNDS] [DEPTH] [IMAGE_SIZE] [BATCH] [PAIR...]
#   PEER.py prints a JSON line with samples_per_s and takes --mode --depth --image-size --batch-size --steps. A PAIR is PRECISION:MODE.
#   PYTHON and SDCLR name the programs.
set -euo pipefail
peer=$1
rounds=${2:-3}
depth=${3:-18}
size=${4:-32}
batch=${5:-128}
pairs=("${@:6}")
if [ ${#pairs[@]} -eq 0 ]; then
  pairs=(bf16:ref-fp32 bf16:bf16 bf16:bf16-compile f32:fp32)
fi
python=${PYTHON:-python3}
sdclr=${SDCLR:-target/release/sdclr}
for pair in "${pairs[@]}"; do
  mode=${pair#*:}
  command="$python $peer --mode $mode --depth $depth --image-size $size --batch-size $batch --steps 3"
  "$sdclr" bench step --json --model "resnet$depth" --image-size "$size" --batch-size "$batch" --steps 3 \
    --precision "${pair%:*}" --rounds "$rounds" --against "$command" | tr -d '\n' | sed "s/  */ /g; s|$command|PYTHON torch_step.py --mode $mode|"
  echo
done
