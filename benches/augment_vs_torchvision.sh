#!/usr/bin/env bash
# Times the two-view augmentations on one core beside torchvision on PIL, interleaved: JSON lines on stdout, and the medians over
# the rounds of ours / torchvision's on stderr.
# Usage: benches/augment_vs_torchvision.sh PEER.py [ROUNDS]
#   PEER.py prints JSON lines with recipe and samples_per_s_per_core. PYTHON and AUGMENT_SPEED name the programs; the latter is
#   built by: cargo build --release -p sdclr-data --example augment_speed
set -euo pipefail
peer=$1
rounds=${2:-5}
python=${PYTHON:-python3}
augment_speed=${AUGMENT_SPEED:-target/release/examples/augment_speed}
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
for round in $(seq "$rounds"); do
  "$augment_speed" 2 cifar imagenet "cifar through the loader"
  "$python" "$peer"
done | tee "$lines"
"$python" - "$lines" >&2 <<'PYTHON'
import json, statistics, sys
rates = {}
for line in map(json.loads, open(sys.argv[1])):
    rates.setdefault((line["peer"] == "sdclr", line["recipe"]), []).append(line["samples_per_s_per_core"])
for (is_ours, recipe), values in rates.items():
    if is_ours:
        ratios = [ours / theirs for ours, theirs in zip(values, rates[False, recipe.split()[0]])]
        print(f"{recipe}: {statistics.median(ratios):.1f} x torchvision (median of {len(ratios)} rounds)")
PYTHON
