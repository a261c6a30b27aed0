#!/usr/bin/env bash
# Trains on the bundled images in f32 and in bf16, for several seeds, and probes every run: on stdout a JSON line a run with the
# loss of the last epoch and the accuracies, in percent. `benches/peers/bf16_table.py LINES` makes the table.
# Usage: benches/bf16_training.sh OUT [SEED...]
#   OUT gets a run directory each. SDCLR names the program, BEFORE a command to put before every call of it.
set -euo pipefail
out=$1
shift
[ $# -gt 0 ] || set -- 1 2 3
data=$(dirname "$0")/../crates/cli/assets/fashion-mnist-lt
sdclr=${SDCLR:-target/release/sdclr}
read -ra before <<<"${BEFORE:-}"
for seed in "${@}"; do
  for method in simclr sdclr; do
    for precision in f32 bf16; do
      run=$out/$method-$precision-$seed
      call() { "${before[@]}" "$sdclr" "$@" --quiet >/dev/null; }
      call pretrain --preset demo --data "$data/train-images-idx3-ubyte.gz" --out "$run" \
        --method "$method" --precision "$precision" --seed "$seed" \
        --epochs 12 --set augment.area_min=0.1 --set prune.rate=0.9
      labelled=(--data "$data/probe-images-idx3-ubyte.gz" --test "$data/test-images-idx3-ubyte.gz" --seed "$seed")
      call eval linear "$run" "${labelled[@]}" --protocol cached --name linear
      call eval knn "$run" "${labelled[@]}" --name knn
      python3 - "$run" "$method" "$precision" "$seed" <<'PYTHON'
import json, sys
run, method, precision, seed = sys.argv[1:]
epochs = [line for line in map(json.loads, open(f"{run}/metrics.jsonl")) if line["kind"] == "epoch"]
line = {"method": method, "precision": precision, "seed": int(seed), "loss": round(epochs[-1]["loss"], 4)}
for probe in ["linear", "knn"]:
    result = json.load(open(f"{run}/results/{probe}.json"))
    line[probe] = result["top1"]
    line |= {f"{probe} {group}": round(result["groups"][group], 2) for group in ("many", "medium", "few")}
print(json.dumps(line), flush=True)
PYTHON
    done
  done
done
